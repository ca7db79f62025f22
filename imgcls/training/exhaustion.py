"""What ends a run for want of room: on the disk, in memory, or between the processes that decode; as one line.

train.py trains within it. What is raised elsewhere for other reasons goes through as it is.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from imgcls.errors import RunError

UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # which reading the images never ends with


@contextmanager
def name_what_ran_out(run: Path) -> Iterator[None]:
    """Within it, what is raised for want of room says what to do.

    Args:
        run: the run directory, all that is written.

    Raises:
        RunError: in place of that.
    """
    try:
        yield
    except OSError as err:
        if err.errno not in UNWRITABLE:
            raise
        advice = "make room or mend its permissions, then go on with --resume, or give another --out"
        raise RunError(f"{run}: cannot be written: {err.strerror}; {advice}") from err
    except RuntimeError as err:
        if reason := _describe(err):
            raise RunError(reason) from err
        raise


def _describe(error: RuntimeError) -> str:
    """Returns what ran out, and what helps; empty where it was nothing. Torch has a class of its own for a GPU only."""
    lines = str(error).strip().splitlines() or [""]
    first, last = lines[0].strip(), lines[-1].strip()
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in first:
        return f"{first}; lower --batch-size or --size"
    if "DataLoader worker" not in first:
        return ""
    if "shared memory" in str(error):
        return (
            f"{last}; the processes that decode images need more of it (/dev/shm), or lower --workers or --batch-size"
        )
    if "killed by signal" in first or "exited unexpectedly" in first:
        return (
            f"a process that decodes images is gone, as where memory runs out: {first}; lower --workers, then --resume"
        )
    return ""
