"""Good and bad images in one batch of a real TorchServe: each is answered for itself.

The model waits 8 s for a batch of exactly as many requests as are sent; that the answers come sooner shows that they
were one batch.
"""

import io
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.archive.build import build_archive
from imgcls.archive.stage import ServingOptions
from imgcls.client.answers import Prediction
from imgcls.client.errors import BadImageError
from imgcls.errors import ClientError
from imgcls.serving.access import inference_client
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import StateFolder
from model.classifier import Classifier
from model.preprocess import pixels_from_bytes

DELAY_MS = 8_000


def encode(image: Image.Image, kind: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


def make_images() -> tuple[dict[str, bytes], dict[str, tuple[bytes, int]]]:
    """Returns the good images, and the bad ones with their expected status."""
    samples = np.random.default_rng(0).integers(0, 256, (20, 24, 4), dtype=np.uint8)
    rgb = Image.fromarray(samples[:, :, :3])
    jpeg = encode(rgb, "JPEG")
    good = {
        "rgb jpeg": jpeg,
        "grayscale": encode(rgb.convert("L"), "JPEG"),
        "rgba": encode(Image.fromarray(samples), "PNG"),
        "cmyk": encode(rgb.convert("CMYK"), "JPEG"),
        "16-bit png": encode(Image.fromarray(samples[:, :, 0].astype(np.uint16) * 257), "PNG"),
        "palette gif": encode(rgb.quantize(16), "GIF"),
    }
    bad = {
        "truncated jpeg": (jpeg[: len(jpeg) // 2], 422),
        "empty body": (b"", 400),
        "text file": (b"this is no image\n", 415),
    }
    return good, bad


@pytest.fixture
def waiting_server(run: Path, tmp_path: Path) -> Iterator[StateFolder]:
    """A server that answers when as many requests as there are images have come."""
    good, bad = make_images()
    options = ServingOptions(workers=1, batch_size=len(good) + len(bad), max_batch_delay_ms=DELAY_MS)
    archive = build_archive(run, tmp_path, options=options)
    folder = StateFolder(tmp_path / "state")
    config = Path(__file__).parents[2] / "config.properties"
    start(ServeOptions(archive, config=config, state=folder.path, port=0, dies_with_parent=True, timeout_s=280))
    yield folder
    stop(folder)


def test_bad_images_fail_alone_in_their_batch(waiting_server: StateFolder, run: Path) -> None:
    good, bad = make_images()
    requests = {**good, **{name: data for name, (data, _) in bad.items()}}
    with (
        inference_client(waiting_server.read_running(), waiting_server) as client,
        ThreadPoolExecutor(len(requests)) as pool,
    ):

        def ask(data: bytes) -> Prediction | ClientError:
            try:
                return client.predict(data)
            except ClientError as err:
                return err

        started = time.monotonic()
        answers = dict(zip(requests, pool.map(ask, requests.values()), strict=True))
        elapsed_s = time.monotonic() - started

    assert elapsed_s < DELAY_MS / 1000 / 2
    classifier = Classifier.load(run)
    for name, data in good.items():
        answer = answers[name]
        assert isinstance(answer, Prediction), f"{name}: {answer}"
        row = classifier.probabilities(pixels_from_bytes(data, classifier.spec)[None])[0]
        assert answer.best.index == row.argmax()
        assert answer.best.probability == pytest.approx(float(row.max()), abs=1e-4)
    for name, (_, status) in bad.items():
        answer = answers[name]
        assert isinstance(answer, BadImageError), f"{name}: {answer}"
        assert answer.status == status
        assert answer.reason
