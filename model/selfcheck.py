"""The check that a worker makes before it calls itself ready: its engine answers the archive's golden inputs right."""

from pathlib import Path

import numpy as np

from model.classifier import Classifier
from model.engines.engine import Engine
from model.errors import NumericError, SpecError
from model.golden import EXPECTED_FILE, GOLDEN_FOLDER, describe_mismatch, parse_golden
from model.preprocess import pixels_from_bytes
from model.spec import ModelSpec


class GoldenCheck:
    """The decoded golden inputs of an unpacked archive; call it with an engine.

    Args:
        folder: of the archive.
        spec: its own.
        batch_size: how many an engine gets at a time, as the worker will give it: for a larger batch than it serves, an
            engine would take memory that it keeps.

    Raises:
        SpecError: there are none, or one cannot be read.
    """

    def __init__(self, folder: Path, spec: ModelSpec, *, batch_size: int) -> None:
        golden = folder / GOLDEN_FOLDER
        self.spec = spec
        self.batch_size = batch_size
        try:
            self.items = parse_golden(
                (golden / EXPECTED_FILE).read_bytes(), read_file=lambda name: (golden / name).read_bytes()
            )
        except OSError as err:
            raise SpecError(
                f"{err.filename}: a golden input cannot be read: {err.strerror}; build the archive again"
            ) from err
        self.pixels = np.stack([pixels_from_bytes(item.data, spec) for item in self.items])

    def __call__(self, engine: Engine) -> None:
        """Raises NumericError where an answer is not what this engine gave when the archive was built."""
        classifier, starts = Classifier(self.spec, engine), range(0, len(self.pixels), self.batch_size)
        batches = (self.pixels[start : start + self.batch_size] for start in starts)
        rows = (row for batch in batches for row in classifier.probabilities(batch))
        for item, row in zip(self.items, rows, strict=True):
            probability = float(row[item.index])
            if mismatch := describe_mismatch(item, probability=probability, engine=engine.kind.name):
                raise NumericError(
                    f"engine {engine.kind.name}: golden input {mismatch}; this machine does not compute what was tested"
                )
