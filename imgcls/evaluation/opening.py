"""Opens what a run is measured on, or calibrated to: the data of its training by splits, any other data whole.

A test set without splits is used up to its last image. From the data of the run's training a split is drawn as it was
drawn then, so that training images stay out; also where that data lies elsewhere by now, which train_record.json tells.
Called by `run.open_tests` and by `calibrate`.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from imgcls.data.digests import hash_source, make_fingerprint
from imgcls.data.images import DataSource
from imgcls.data.sources import is_same_data, open_source
from imgcls.errors import DataError
from imgcls.training.record import RECORD_FILE, read_record

Tell = Callable[[str], None]


class RunData(BaseModel):
    """What a run's train_config.yaml says about its data; the other keys of the file are train.py's."""

    data: str | None = None
    seed: int = 0
    val_fraction: float = 0.15
    test_fraction: float = 0.15


def open_images(text: str, *, run: Path, config: RunData) -> DataSource:
    """Opens a source so that its chosen split is there; decodes nothing.

    Raises:
        UsageError, DataError: as `open_source` says, or the chosen split is not there.
        RunError: the run's train_record.json cannot be read.
    """
    rule = config.model_dump(include={"seed", "val_fraction", "test_fraction"})
    is_own = config.data is not None and is_same_data(text, config.data)
    source = open_source(text, **rule, whole=not is_own)
    if not is_own:
        source = _find_training_data(source, run, rule=rule) or source
    if source.chosen not in source.splits:
        raise DataError(f"{text}: has no {source.chosen} split; it has {', '.join(source.splits)}: choose with ,split=")
    return source


def describe_draw(source: DataSource) -> str | None:
    """Says how many images were drawn, where the chosen split is not the source's own."""
    if source.chosen not in source.drawn:
        return None
    total = sum(map(len, source.splits.values()))
    return f"{len(source.splits[source.chosen]):,} of {total:,} images, the drawn {source.chosen} split"


def _find_training_data(source: DataSource, run: Path, *, rule: dict[str, Any]) -> DataSource | None:
    """Returns the source with its splits drawn, where they give the very images that the run was trained on.

    Images are read for it only where there are as many as the run had.
    """
    path = run / RECORD_FILE
    if set(source.splits) != {"test"} or not path.is_file():
        return None
    recorded = read_record(path).data.splits
    if len(source.splits["test"]) != sum(each.files + each.unreadable for each in recorded.values()):
        return None
    try:
        drawn = open_source(source.text, **rule)
    except DataError:  # nothing can be drawn from it, so nothing was
        return None
    if "train" not in recorded or "train" not in drawn.splits:
        return None
    train = drawn.splits["train"]
    digests = hash_source(replace(drawn, splits={"train": train}))["train"]
    return drawn if make_fingerprint(train, digests).sha256 == recorded["train"].sha256 else None
