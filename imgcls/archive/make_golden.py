"""Makes an archive's golden inputs: images of the run, answered by the classifier that is being packed."""

import io
import json
import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from imgcls.errors import ArchiveError
from model.classifier import Classifier
from model.errors import ImageError, NumericError
from model.golden import EXPECTED_FILE, GOLDEN_FOLDER, GoldenItem
from model.labels import LABELS_FILE, read_labels
from model.preprocess import pixels_from_bytes
from model.spec import ModelSpec
from model.tiff import write_tiff

MAX_GOLDEN_BYTES = 4_000_000
DIGITS = 4  # of a probability: what follows them differs between processors, and would be in the archive's bytes


def write_golden(run: Path, folder: Path) -> None:
    """Writes golden/ into a staged archive.

    The inputs are the images that training left in the run's golden/ folder; a run without them (weights from
    elsewhere) gets one made image. The answers are those of the run's weights, on the CPU.

    Raises:
        ArchiveError: one of the run's golden images is too large or cannot be decoded.
        ModelError: the run cannot be loaded, or answers with NaN.
    """
    golden = folder / GOLDEN_FOLDER
    golden.mkdir()
    classifier = Classifier.load(run)
    labels = read_labels(run / LABELS_FILE, count=len(classifier.spec.classes))
    for file in _inputs(run):
        if file.stat().st_size > MAX_GOLDEN_BYTES:
            raise ArchiveError(
                f"{GOLDEN_FOLDER}/{file.name}: has more than the {MAX_GOLDEN_BYTES:,} bytes that a starting server "
                "is sent; replace it in the run directory"
            )
        shutil.copyfile(file, golden / file.name)
    if not any(golden.iterdir()):
        made = "made.png" if classifier.spec.ranges is None else "made.tiff"
        (golden / made).write_bytes(make_image(classifier.spec))
    items = [answer(classifier, file, labels=labels) for file in sorted(golden.iterdir())]
    text = json.dumps([item.model_dump() for item in items], indent=1, ensure_ascii=False)
    (golden / EXPECTED_FILE).write_text(text + "\n", encoding="utf-8")


def answer(classifier: Classifier, file: Path, *, labels: tuple[str, ...]) -> GoldenItem:
    """Classifies one image file."""
    try:
        pixels = pixels_from_bytes(file.read_bytes(), classifier.spec)
    except ImageError as err:
        raise ArchiveError(f"{GOLDEN_FOLDER}/{file.name}: {err}; replace or delete it in the run directory") from err
    row = classifier.probabilities(pixels[None])[0]
    if not np.isfinite(row).all():
        raise NumericError(f"the weights answer golden input {file.name} with NaN or infinity; train them again")
    best = int(row.argmax())
    return GoldenItem(file=file.name, index=best, label=labels[best], probability=float(f"{row[best]:.{DIGITS}g}"))


def make_image(spec: ModelSpec) -> bytes:
    """Returns seeded noise, with the spec's channels, twice as large as its input: a PNG, or a TIFF of bands."""
    side = 2 * spec.size
    random = np.random.default_rng(0)
    if spec.ranges is not None:
        drawn = [random.integers(low, high, (side, side), dtype=np.uint16) for low, high in spec.ranges]
        return write_tiff(np.stack(drawn))
    noise = random.integers(0, 256, (side, side, spec.channels), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise.squeeze()).save(buffer, format="PNG")
    return buffer.getvalue()


def _inputs(run: Path) -> list[Path]:
    folder = run / GOLDEN_FOLDER
    return sorted(file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
