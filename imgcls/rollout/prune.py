"""Which archives of the gateway's store nothing will ask for again, and their removal.

What the table serves and what a rollout that is under way names is never removed, nor what the newest entries of the
history may be asked to go back to.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from imgcls.archive.trust import detached_signature
from imgcls.gateway.table import Table
from imgcls.rollout.state import RolloutState

KEYS = ("release", "before")  # the two versions of an entry in the history


def find_unneeded(
    stored: Sequence[Path],
    *,
    table: Table,
    history: Sequence[Mapping[str, Any]],
    last: RolloutState | None,
    keep: int,
) -> list[Path]:
    """Returns the archives that can go.

    Args:
        stored: all archives of the store.
        table: of the gateway.
        history: as in history.jsonl, oldest first.
        last: the rollout that is under way, or the last one.
        keep: how many of the newest entries of each model's history can still be undone.
    """
    needed = {row.archive for model in table.models for row in model.versions}
    if last is not None and not last.is_finished:
        needed |= {release.archive for release in (last.stable, last.candidate) if release is not None}
    for name in {str(entry["model"]) for entry in history}:
        own = [entry for entry in history if entry["model"] == name]
        needed |= {str(entry[key]["archive"]) for entry in own[len(own) - min(keep, len(own)) :] for key in KEYS}
    return sorted(path for path in stored if path.name not in needed)


def remove(paths: Sequence[Path]) -> int:
    """Removes archives with their signatures, and returns how many bytes that freed."""
    freed = 0
    for path in paths:
        for each in (path, detached_signature(path)):
            if each.is_file():
                freed += each.stat().st_size
                each.unlink()
    return freed
