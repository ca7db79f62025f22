"""A run's history and metrics as TensorBoard event files, to lay beside those of other runs."""

import io
import socket
import struct
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import summary
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.record_writer import masked_crc32c

from imgcls.evaluation.numbers import read_numbers
from imgcls.files import refuse_unwritable, write_atomic

_PREFIX = "events.out.tfevents"


def export_tensorboard(run: Path, folder: Path) -> int:
    """Writes an event file into `folder`/NAME, in place of an earlier export; returns how many numbers it wrote.

    Raises:
        RunError: the run has neither a history nor metrics, or one of them is broken; or the folder cannot be written.
    """
    history, tests = read_numbers(run)
    target, now = folder / run.resolve().name, time.time()
    events = [Event(wall_time=now, file_version="brain.Event:2")]
    for number in (*history, *tests):
        events.append(Event(wall_time=now, step=number.step, summary=summary.scalar(number.tag, number.value)))
    for name in dict.fromkeys(number.tag.split("/")[1] for number in tests):
        if (picture := run / f"confusion_{name}.png").is_file():
            pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("RGB"))
            shown = summary.image(f"confusion/{name}", pixels, dataformats="HWC")
            events.append(Event(wall_time=now, step=0, summary=shown))
    path = target / f"{_PREFIX}.{now:.0f}.{socket.gethostname()}"
    with refuse_unwritable(target, advice="choose another folder with --tensorboard"):
        target.mkdir(parents=True, exist_ok=True)
        write_atomic(path, b"".join(map(_frame, events)))
        for old in target.glob(f"{_PREFIX}.*"):
            if old != path:
                old.unlink()
    return len(history) + len(tests)


def _frame(event: Event) -> bytes:
    """Returns a TFRecord: length, check, event, check. tensorboardX's own writer hangs where the disk is full."""
    data = event.SerializeToString()
    length = struct.pack("<Q", len(data))
    return b"".join((length, _check(length), data, _check(data)))


def _check(data: bytes) -> bytes:
    return struct.pack("<I", masked_crc32c(data))
