"""What a person watching a training run sees: one line an epoch, and within it a bar with loss and rate.

Everything goes to stderr. The bar shows on a terminal only; the lines always.
"""

import os
import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


def log(line: str) -> None:
    """Prints one line, in the main process of a run."""
    if is_main():
        print(line, file=sys.stderr, flush=True)


def is_main() -> bool:
    """Whether torchrun has given this process rank 0, or has not started it."""
    return os.environ.get("RANK", "0") == "0"


class EpochProgress:
    """The bar of one epoch, of which `done` batches are done already, as a context manager."""

    def __init__(self, title: str, *, batches: int, done: int = 0) -> None:
        console = Console(stderr=True)
        columns = (
            TextColumn(title),
            BarColumn(),
            TextColumn("loss {task.fields[loss]}  {task.fields[rate]:,.0f} images/s"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(
            *columns, console=console, transient=True, disable=not (console.is_terminal and is_main())
        )
        self._task = self._progress.add_task(title, total=batches, completed=done, loss="-", rate=0.0)
        self._started = time.perf_counter()
        self._images = 0

    def __enter__(self) -> Self:
        """Shows the bar."""
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the bar."""
        self._progress.stop()

    def step(self, *, loss: float, images: int) -> None:
        """Moves the bar on by one batch of that many images."""
        self._images += images
        rate = self._images / (time.perf_counter() - self._started)
        self._progress.update(self._task, advance=1, loss=f"{loss:.4f}", rate=rate)
