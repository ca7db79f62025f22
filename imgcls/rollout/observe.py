"""What the gateway's access logs say about two versions, as samples for the analysis."""

import json
import time
from collections import deque
from collections.abc import Iterable

from imgcls.gateway.access_log import LogTail, Record
from imgcls.gateway.listeners import EnvoyPaths
from imgcls.rollout.samples import Sample

MOST_SAMPLES = 200_000  # the newest; a step of hours at hundreds a second would fill the memory
TURNED_AWAY = ("RL",)  # by the gateway, of its own accord: says nothing about a version


class Observer:
    """Collects the samples of one model from now on.

    Args:
        paths: of the gateway's Envoy.
        model: its name.
        versions: that are of interest.
        keep_s: how long a sample is kept; None: as long as this.
    """

    def __init__(self, paths: EnvoyPaths, *, model: str, versions: Iterable[str], keep_s: float | None = None) -> None:
        self._tails = ((LogTail(paths.access_log), False), (LogTail(paths.shadow_log), True))
        self._model = model
        self._versions = frozenset(versions)
        self._keep_s = keep_s
        self._began_s = time.monotonic()
        self._samples: deque[Sample] = deque(maxlen=MOST_SAMPLES)

    @property
    def span_s(self) -> float:
        """How many seconds the samples are of."""
        age_s = time.monotonic() - self._began_s
        return age_s if self._keep_s is None else min(age_s, self._keep_s)

    def read(self) -> list[Sample]:
        """Reads what has come, and returns the samples of requests since the beginning, as far as they are kept."""
        now_s = time.time()
        since_s = now_s - (time.monotonic() - self._began_s)  # by the clock as it is now: it may have been set
        for tail, is_shadow in self._tails:
            for record in tail.read():
                if self._is_of_interest(record, since_s=since_s):
                    self._samples.append(sample_of(record, is_shadow=is_shadow))
        if self._keep_s is not None:
            kept = [sample for sample in self._samples if sample.time_s > now_s - self._keep_s]
            self._samples = deque(kept, maxlen=MOST_SAMPLES)
        return list(self._samples)

    def _is_of_interest(self, record: Record, *, since_s: float) -> bool:
        return (
            record.model == self._model
            and record.version in self._versions
            and record.time_s >= since_s
            and record.flags not in TURNED_AWAY
            # A client that went away got no answer by its own will.
            and not (record.status == 0 and "DC" in record.flags)
        )


def sample_of(record: Record, *, is_shadow: bool) -> Sample:
    """Returns a record as a sample, with what its answer says of one image."""
    label, probabilities = read_answer(record.answer)
    return Sample(
        time_s=record.time_s + record.duration_ms / 1000,
        request_id=record.request_id,
        version=record.version or "",
        is_shadow=is_shadow,
        status=record.status,
        duration_ms=record.duration_ms,
        label=label,
        probability=probabilities.get(label) if label is not None else None,
        probabilities=probabilities or None,
    )


def read_answer(answer: str | None) -> tuple[str | None, dict[str, float]]:
    """Returns the best class and the probabilities of an answer for one image; of any other, None and nothing."""
    try:
        entries = json.loads(answer or "")["predictions"]
        probabilities = {str(entry["label"]): float(entry["probability"]) for entry in entries}
        return next(iter(probabilities), None), probabilities
    except (ValueError, KeyError, TypeError):
        return None, {}
