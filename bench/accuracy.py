"""`python -m bench accuracy`: what faster engines and faster decoding cost in accuracy, with real weights and labels.

EfficientNet-Lite0 with its ImageNet weights (`bench.lite0`). Each engine offline against eager, then the same images
through TorchServe; and JPEGs much larger than the input, decoded as served and exactly.
"""

import io
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

from bench import describe_machine
from bench.environments import PeerError
from bench.lite0 import LITE0
from bench.subject import make_run
from bench.torchserve import build_ours, run_ours, unpack
from model.classifier import Classifier
from model.engines.choose import choose_engine
from model.engines.records import read_records
from model.preprocess import pixels_from_bytes
from model.spec import SPEC_FILE, ModelSpec, read_spec

LABELS_FILE = "labels.json"
SERVED = ("eager", "openvino", "auto")
REPEATS = 3  # of each decode that is timed; the fastest counts
NOISE = 6.0  # standard deviation of 255, of the noise that an enlarged image gets


@dataclass(frozen=True)
class Labelled:
    """Images as files' bytes, and the index of the class of each."""

    files: list[bytes]
    classes: npt.NDArray[np.int64]


def accuracy(
    *,
    images: Annotated[Path, typer.Option(help=f"Folder of JPEGs with {LABELS_FILE}: [{{file, class_index}}].")],
    sides: Annotated[
        str, typer.Option(help="Shorter sides, in pixels, that the images are enlarged to.")
    ] = "1600,3200",
) -> None:
    """Measures top-1 of each engine, offline and served, and of reduced decoding, and prints two tables in Markdown."""
    try:
        labelled, paths = _read_labelled(images)
        enlarged_sides = [int(side) for side in sides.split(",") if side.strip()]
    except (OSError, ValueError, KeyError) as err:
        sys.exit(f"error: {images}: needs JPEGs and {LABELS_FILE} with file and class_index of each: {err}")
    print(f"{LITE0}, {len(paths)} images; {describe_machine()}\n")
    with tempfile.TemporaryDirectory(prefix="imgcls-bench-") as temporary:
        scratch = Path(temporary)
        try:
            run = make_run(scratch / "run", network=LITE0, images=paths)
            print(_compare_engines(run, labelled, scratch=scratch))
            print(_compare_decoding(run, labelled, sides=enlarged_sides))
        except PeerError as err:
            sys.exit(f"error: {err}")


def _read_labelled(folder: Path) -> tuple[Labelled, list[Path]]:
    entries = json.loads((folder / LABELS_FILE).read_text(encoding="utf-8"))
    paths = [folder / entry["file"] for entry in entries]
    classes = np.array([entry["class_index"] for entry in entries], np.int64)
    return Labelled([path.read_bytes() for path in paths], classes), paths


def _compare_engines(run: Path, labelled: Labelled, *, scratch: Path) -> str:
    archive = unpack(build_ours(run, scratch / "store", engine="auto"))
    spec = read_spec(archive / SPEC_FILE)
    pixels = np.stack([pixels_from_bytes(data, spec) for data in labelled.files])  # (N, C, H, W)
    offline = {
        record.engine: _classify(archive, spec, pixels, engine=record.engine)
        for record in read_records(archive)
        if record.is_accepted
    }
    served = dict(_serve(run, labelled, engine=name, scratch=scratch) for name in SERVED)
    rows = ["| engine | top-1 | as eager | largest change of a probability | served top-1 | served as offline |"]
    rows += ["|---|---|---|---|---|---|"]
    eager = offline["eager"]
    for engine, probabilities in offline.items():
        best, answers = probabilities.argmax(axis=1), served.get(engine)
        row = [engine, _percent(best == labelled.classes), _percent(best == eager.argmax(axis=1))]
        row += [f"{np.abs(probabilities - eager).max():.4f}"]
        row += ["", ""] if answers is None else [_percent(answers == labelled.classes), _percent(answers == best)]
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows) + "\n"


def _classify(archive: Path, spec: ModelSpec, pixels: npt.NDArray[np.uint8], *, engine: str) -> npt.NDArray[np.float32]:
    """Returns probabilities (N, classes) of pixels (N, C, H, W), one image at a time."""
    choice = choose_engine(archive, spec, wanted=engine, threads=1)
    classifier = Classifier(spec, choice.engine)
    return np.concatenate([classifier.probabilities(image[None]) for image in pixels])


def _serve(run: Path, labelled: Labelled, *, engine: str, scratch: Path) -> tuple[str, npt.NDArray[np.int64]]:
    """Returns the engine that the workers took, and the best class of each image, as TorchServe answered."""
    archive = build_ours(run, scratch / "store", engine=engine)
    taken = choose_engine(unpack(archive), read_spec(unpack(archive) / SPEC_FILE), wanted=engine).engine
    with run_ours(archive, folder=scratch / f"serve-{engine}", image=labelled.files[0]) as running:
        answers = [json.loads(running.ask(data)) for data in labelled.files]
    best = [answer["predictions"][0]["index"] for answer in answers]
    return str(taken.describe()["engine"]), np.array(best, np.int64)


def _compare_decoding(run: Path, labelled: Labelled, *, sides: list[int]) -> str:
    spec, classifier = read_spec(run / SPEC_FILE), Classifier.load(run)
    rows = ["| shorter side | top-1 exact | top-1 as served | same best class | mean change of a pixel, of 255 |"]
    rows[0] += " largest change of a probability | ms exact | ms as served |"
    rows += ["|---|---|---|---|---|---|---|---|"]
    for side in (None, *sides):
        files = labelled.files if side is None else [_enlarge(data, side) for data in labelled.files]
        decoded, ms = {}, {}
        for exact in (True, False):
            timed = [_decode(data, spec, exact=exact) for data in files]
            decoded[exact] = np.stack([pixels for pixels, _ in timed])
            ms[exact] = np.median([spent for _, spent in timed])
        exactly, fast = (
            np.concatenate([classifier.probabilities(image[None]) for image in decoded[exact]])
            for exact in (True, False)
        )
        change = np.abs(decoded[True].astype(np.int16) - decoded[False].astype(np.int16)).mean()
        row = [
            "as they are" if side is None else f"{side:,}",
            _percent(exactly.argmax(axis=1) == labelled.classes),
            _percent(fast.argmax(axis=1) == labelled.classes),
            _percent(exactly.argmax(axis=1) == fast.argmax(axis=1)),
            f"{change:.2f}",
            f"{np.abs(exactly - fast).max():.3f}",
            f"{ms[True]:.1f}",
            f"{ms[False]:.1f}",
        ]
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


def _decode(data: bytes, spec: ModelSpec, *, exact: bool) -> tuple[npt.NDArray[np.uint8], float]:
    spent_s = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        pixels = pixels_from_bytes(data, spec, exact=exact)
        spent_s.append(time.perf_counter() - began)
    return pixels, min(spent_s) * 1000


def _enlarge(data: bytes, side: int) -> bytes:
    """Returns the JPEG enlarged to a shorter side, with noise of single pixels, as a camera's: detail to lose."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    factor = side / min(image.size)
    size = round(image.width * factor), round(image.height * factor)
    pixels = np.asarray(image.resize(size, Image.Resampling.LANCZOS), np.float32)
    noise = np.random.default_rng(side).standard_normal(pixels.shape, np.float32)
    noisy = (pixels + NOISE * noise).clip(0, 255).round().astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noisy).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _percent(hits: npt.NDArray[np.bool_]) -> str:
    return f"{hits.mean():.1%}"
