"""Shows a rollout while it runs: a live view on a terminal, a line for each change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from imgcls.gateway.gateway import Gateway
    from imgcls.rollout.progress import OnChange
    from imgcls.rollout.samples import Sample
    from imgcls.rollout.snapshot import Snapshot
    from imgcls.rollout.state import RolloutState
    from imgcls.rollout.verdicts import Report
    from imgcls.rollout.watch import Watcher

REFRESHES_PER_S = 2


@contextmanager
def shown(gateway: Gateway) -> Iterator[OnChange]:
    """Yields what the engine tells its changes to; they appear on stderr."""
    from rich.console import Console
    from rich.live import Live

    from imgcls.rollout.watch import Watcher

    watcher = Watcher(gateway)
    console = Console(stderr=True)

    def draw() -> RenderableType:
        from imgcls.rollout.view import render

        snapshot = watcher.now()
        return render(snapshot) if snapshot else "starting"

    live = Live(get_renderable=draw, console=console, refresh_per_second=REFRESHES_PER_S, transient=False)
    with watcher.looking(), live if console.is_terminal else nullcontext():
        yield watcher if console.is_terminal else _Lines(watcher)


class _Lines:
    """Prints a line when something happened that is worth one."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self._before: Snapshot | None = None

    def __call__(self, state: RolloutState, report: Report | None, samples: Sequence[Sample]) -> None:
        from imgcls.rollout.snapshot import has_changed
        from imgcls.rollout.view import render_line

        self._watcher(state, report, samples)
        now = self._watcher.snapshot
        if now is not None and has_changed(self._before, now):
            print(render_line(now), file=sys.stderr, flush=True)
        self._before = now
