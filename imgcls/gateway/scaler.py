"""The thread that lets workers follow the load, for every version whose row says so. One of the supervisor's."""

import logging
import threading
import time
from collections import deque

from imgcls.errors import ImgclsError
from imgcls.gateway.autoscale import Load, Look, decide, may_shrink
from imgcls.gateway.clusters import cluster_name
from imgcls.gateway.gateway import Gateway
from imgcls.gateway.scaling import scale
from imgcls.gateway.table import Autoscale, Model, Version

log = logging.getLogger(__name__)

NEVER_S = float("-inf")
SPARE = 1.5  # looks that are kept, beyond the longest span


class Scaler(threading.Thread):
    """Looks at what is in flight, and changes workers; lives as long as the supervisor.

    Args:
        gateway: whose.
        timeout_s: for the workers to be READY.
    """

    def __init__(self, gateway: Gateway, *, timeout_s: float) -> None:
        super().__init__(name="scaler", daemon=True)
        self._gateway = gateway
        self._timeout_s = timeout_s
        self._stopping = threading.Event()
        self._looks: dict[str, deque[Look]] = {}
        self._changed_s: dict[str, float] = {}

    def run(self) -> None:
        """Looks until `stop`."""
        while not self._stopping.wait(self._gateway.settings.readiness.poll_s):
            try:
                for model in self._gateway.known_table().models:
                    for row in model.versions:
                        if row.autoscale is not None:
                            self._follow(model, row, row.autoscale)
            except (ImgclsError, OSError) as err:  # Envoy or a server is down: there is nothing to go by
                log.info("workers stay as they are: %s", err)
            except Exception:  # the next look may be better; the supervisor must not lose its scaler
                log.exception("workers stay as they are")

    def stop(self) -> None:
        """Ends the thread; a change that it is at goes on until the servers are gone."""
        self._stopping.set()

    def _follow(self, model: Model, row: Version, bounds: Autoscale) -> None:
        key = cluster_name(model.name, row.version)
        rules = self._gateway.settings.scaling
        looks = self._looks.setdefault(key, deque())
        looks.append(Look(time.monotonic(), self._gateway.admin.in_flight(key)))
        while looks[-1].at_s - looks[0].at_s > SPARE * max(rules.up_after_s, rules.down_after_s):
            looks.popleft()
        load = self._load(model, row)
        workers = decide(looks, load, bounds=bounds, rules=rules, changed_s=self._changed_s.get(key, NEVER_S))
        if workers == row.workers or (workers < row.workers and not may_shrink(model, row)):
            return
        log.info("%s: %d to %d workers, with %d requests in flight", key, row.workers, workers, looks[-1].in_flight)
        try:
            scale(
                self._gateway,
                workers,
                name=model.name,
                version=row.version,
                timeout_s=self._timeout_s,
                autoscale=bounds,
                only_if=row,
            )
        finally:
            looks.clear()
            self._changed_s[key] = time.monotonic()

    def _load(self, model: Model, row: Version) -> Load:
        members = [member for member in self._gateway.members_of(row.servers) if member.endpoint() is not None]
        status = members[0].versions(model.name).get(row.version) if members else None
        return Load(row.workers, servers=max(1, len(members)), batch_size=status.batch_size if status else 1)
