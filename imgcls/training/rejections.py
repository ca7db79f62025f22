"""rejections.csv: every step that was skipped and every sample that was left out, with file, reason and value.

    epoch,step,event,file,reason,value,limit
    3,1042,step,cats/17.jpg,loss,nan,             a row for each file of the batch; the step did not happen
    5,2000,drop,cats/23.jpg,label,4.1,3.9         left out of the gradient from the next epoch on
    7,2800,return,cats/23.jpg,label,3.2,3.4       taken in again
    8,2911,sample,dogs/5.jpg,gradient,55.0,31.2   left out of this step alone

`step` counts those of the run that were done before. Rows are only ever appended. A resumed run goes on from its
checkpoint's length: what was logged after it belongs to steps that are done anew.
"""

import csv
import hashlib
import io
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from imgcls.files import sync
from imgcls.training.distributed import World
from imgcls.training.record import REJECTIONS_FILE, RejectionRecord


class Row(NamedTuple):
    """One row of the log."""

    epoch: int
    step: int
    event: str
    file: str
    reason: str
    value: float
    limit: float | None


class Rejections:
    """The log of one run, written by its main process; has a state, for checkpoints."""

    def __init__(self, run: Path, *, world: World) -> None:
        self.world = world
        self.path = run / REJECTIONS_FILE
        self._pending: list[Row] = []
        self._length = 0
        self._counts: Counter[str] = Counter()

    def add(self, rows: Iterable[Row]) -> None:
        """Adds rows; they are written with the next checkpoint, or by `flush`."""
        self._pending.extend(rows)

    def flush(self) -> None:
        """Appends what is pending in all processes to the file and brings it to the disk; all must call it."""
        gathered = self.world.gather(self._pending)
        rows = [row for part in gathered for row in part]
        self._pending = []
        if not self.world.is_main or (self._length and not rows):
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self._length:
            writer.writerow(Row._fields)
        for row in rows:
            writer.writerow((*row[:5], f"{row.value:.6g}", "" if row.limit is None else f"{row.limit:.6g}"))
        with self.path.open("ab") as file:
            file.write(text.getvalue().encode())
            file.flush()
            os.fsync(file.fileno())
            self._length = file.tell()
        sync(self.path.parent)
        self._count(rows)

    def summarise(self) -> RejectionRecord:
        """Returns how much was rejected, and the digest of the file as it is; for the main process, after `flush`."""
        counts = {name: self._counts[name] for name in sorted(self._counts)}
        return RejectionRecord(sha256=hashlib.sha256(self.path.read_bytes()).hexdigest(), counts=counts)

    def state_dict(self) -> dict[str, Any]:
        """Flushes; returns the file's length and what was counted."""
        self.flush()
        return {"length": self._length, "counts": dict(self._counts)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Cuts the file to the length that it had.

        Raises:
            ValueError: it is shorter.
        """
        if not self.world.is_main:
            return
        self._length, self._counts = state_dict["length"], Counter(state_dict["counts"])
        size = self.path.stat().st_size if self.path.exists() else 0
        if size < self._length:
            raise ValueError(f"{REJECTIONS_FILE} has {size} bytes; expected at least {self._length}")
        with self.path.open("ab") as file:
            file.truncate(self._length)

    def _count(self, rows: list[Row]) -> None:
        """Counts steps once, however many files they have."""
        self._counts.update(f"step: {reason}" for _, reason in {(r.step, r.reason) for r in rows if r.event == "step"})
        self._counts.update(f"{row.event}: {row.reason}" for row in rows if row.event != "step")
