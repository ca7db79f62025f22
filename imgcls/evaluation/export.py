"""A run's history and metrics as TensorBoard event files, to lay beside those of other runs."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX import SummaryWriter

from imgcls.evaluation.numbers import read_numbers

_PATTERN = "events.out.tfevents.*"


def export_tensorboard(run: Path, folder: Path) -> int:
    """Writes event files into `folder`/NAME, in place of an earlier export; returns how many numbers it wrote.

    Raises:
        RunError: the run has neither a history nor metrics, or one of them is broken.
    """
    history, tests = read_numbers(run)
    target = folder / run.resolve().name
    for old in target.glob(_PATTERN):
        old.unlink()
    with SummaryWriter(str(target), flush_secs=3600) as writer:
        for number in (*history, *tests):
            writer.add_scalar(*number)
        for name in dict.fromkeys(number.tag.split("/")[1] for number in tests):
            if (picture := run / f"confusion_{name}.png").is_file():
                pixels = np.asarray(Image.open(io.BytesIO(picture.read_bytes())).convert("RGB"))
                writer.add_image(f"confusion/{name}", pixels, 0, dataformats="HWC")
    return len(history) + len(tests)
