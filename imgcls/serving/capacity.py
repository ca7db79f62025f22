"""How many workers a machine could hold at all, so that a number with a digit too many does not take it down.

TorchServe starts as many as it is asked for, all at once: the machine then swaps, or the kernel ends what it likes.
"""

from imgcls.errors import UsageError
from imgcls.memory import count_memory_bytes

# That each worker has for itself, what they share left out: 318 MB with a network of 8 x 8 pixels (USS of each of three
# workers, torch 2.15.0, an Intel Xeon, 2026-11-28); half of it with a CPU build of torch, whose import alone takes 150.
LEAST_WORKER_BYTES = 150_000_000


def refuse_workers(count: int, *, what: str) -> None:
    """Refuses a number of workers that no network is small enough for; one that is not refused may be too much too.

    Args:
        count: how many are wanted.
        what: the option or the key that says so.

    Raises:
        UsageError: their memory would be more than all that the machine, or its container, has.
    """
    memory_bytes = count_memory_bytes()
    most = max(1, memory_bytes // LEAST_WORKER_BYTES)
    if count > most:
        raise UsageError(
            f"{what} is {count}; expected at most {most}, as each worker takes at least "
            f"{LEAST_WORKER_BYTES / 1e6:.0f} MB and there are {memory_bytes / 1e9:.1f} GB of memory"
        )
