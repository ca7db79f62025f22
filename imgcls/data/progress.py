"""One progress bar for the rooms that take long: on stderr, only where that is a terminal."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def show_progress(items: Iterable[Item], text: str, *, total: int, show: bool = True) -> Iterator[Item]:
    """Yields the items, and advances a bar by one for each."""
    console = Console(stderr=True)
    hidden = not show or not console.is_terminal
    yield from track(items, text, total=total, console=console, transient=True, disable=hidden)
