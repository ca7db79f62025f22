"""Makes a staged tree's golden answers and its engines, with torch: a job of `torch_jobs`."""

from collections.abc import Sequence
from pathlib import Path


def write_answers(run: str, tree: str, engines: Sequence[str]) -> None:
    """Writes golden/, and the engines that answer it, with their records, into a staged tree.

    All in one thread: how many there are changes the last digits of a sum.

    Raises:
        UsageError: an engine is unknown.
        ArchiveError: an engine that was asked for by name is refused, or a golden image cannot be used.
        ModelError: the run cannot be loaded, or answers with NaN.
    """
    import torch

    from imgcls.archive.engines import build_engines
    from imgcls.archive.make_golden import write_golden

    torch.set_num_threads(1)
    write_golden(Path(run), Path(tree))
    build_engines(Path(run), Path(tree), wanted=engines)
