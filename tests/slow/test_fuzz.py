"""10,000 bad inputs mixed with as many good ones, sent to a real TorchServe: each gets the answer that is its own.

What is bad is not known beforehand, as a mutated file may still be a picture: the same decoder says so offline.
"""

import io
import json
import math
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
import torch
from PIL import Image
from safetensors.torch import save_file

from imgcls.archive.build import build_archive
from imgcls.archive.stage import ServingOptions
from imgcls.serving.access import inference_token, management_client
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import ServerState, StateFolder
from model.classifier import Classifier
from model.errors import ImageError
from model.labels import dump_labels
from model.network import build_network
from model.preprocess import pixels_from_bytes
from model.spec import ModelSpec, dump_spec

COUNT = 10_000  # of each kind
CONNECTIONS = 16
SPEC = ModelSpec(
    size=16, resize=16, mean=(0.5,) * 3, std=(0.25,) * 3, classes=("a", "b", "c", "d"), parameters={"widths": [4]}
)
CONFIG = Path(__file__).parents[2] / "config.properties"
BROKEN_JSON = (b"{", b'{"image": 5}', b'{"image": "###"}', b'{"image": ""}', b"{}", b'{"top_k": 1}', b'{"a":' * 5000)
NOT_IMAGES = (
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"%PDF-1.7\n",
    b"PK\x03\x04" + bytes(100),
    b"[" * 5000,
    b"\x00",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    (run / "spec.yaml").write_text(dump_spec(SPEC))
    (run / "index_to_name.json").write_text(dump_labels(SPEC.classes))
    save_file(build_network(SPEC).state_dict(), run / "weights.safetensors")
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> StateFolder:
    return StateFolder(tmp_path_factory.mktemp("server") / "state")


@pytest.fixture(scope="module")
def server(run: Path, folder: StateFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerState]:
    archive = build_archive(run, tmp_path_factory.mktemp("store"), options=ServingOptions(workers=2))
    try:
        yield start(ServeOptions(archive, config=CONFIG, state=folder.path, port=0, dies_with_parent=True))
    finally:
        stop(folder)


def make_picture(chance: random.Random) -> bytes:
    """Encodes noise or a ramp in one of the formats, modes and options that the decoder has to take."""
    width, height = chance.randint(1, 60), chance.randint(1, 60)
    values = np.random.default_rng(chance.getrandbits(32)).integers(0, 256, (height, width, 4), dtype=np.uint8)
    picture = Image.fromarray(values)
    name, mode, options = chance.choice(
        [
            *(("JPEG", mode, {"quality": 80, "progressive": flag}) for mode in ("RGB", "L", "CMYK") for flag in (0, 1)),
            *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
            *(("WEBP", mode, {"lossless": flag}) for mode in ("RGB", "RGBA") for flag in (False, True)),
            *(("TIFF", "RGB", {"compression": each}) for each in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits")),
            *(("GIF", "P", {}), ("GIF", "P", {"save_all": True, "append_images": [picture] * 3}), ("BMP", "RGB", {})),
        ]
    )
    exif = Image.Exif()
    exif[0x0112] = chance.randint(1, 8)
    buffer = io.BytesIO()
    with_exif = {"exif": exif} if name in {"JPEG", "PNG", "WEBP", "TIFF"} and chance.random() < 0.3 else {}
    picture.convert(mode).save(buffer, name, **options, **with_exif)
    return buffer.getvalue()


def spoil(data: bytes, chance: random.Random) -> bytes:
    """Damages a file as transfers, disks and attackers do."""
    content, place = bytearray(data), chance.randrange(len(data))
    match chance.randrange(7):
        case 0:
            return bytes(content[:place])
        case 1:
            for _ in range(chance.randint(1, 20)):
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        case 2:
            content[place:place] = chance.randbytes(chance.randint(1, 40))
        case 3:
            del content[place : place + chance.randint(1, 40)]
        case 4:  # the head of one file before the body of another
            other = make_picture(chance)
            return bytes(content[: min(place, 64)]) + other[min(place, len(other)) :]
        case 5:  # a header that announces other sizes
            for at in range(4, min(40, len(content))):
                if chance.random() < 0.2:
                    content[at] = chance.choice((0, 1, 0x7F, 0xFF))
        case 6:
            return chance.choice((*BROKEN_JSON, *NOT_IMAGES, chance.randbytes(chance.randint(1, 300)), b""))
    return bytes(content)


def collect(make: Callable[[], bytes], judge: Callable[[bytes], object], *, wanted: type) -> list[tuple[bytes, object]]:
    found: list[tuple[bytes, object]] = []
    while len(found) < COUNT:
        data = make()
        if isinstance(verdict := judge(data), wanted):
            found.append((data, verdict))
    return found


@pytest.mark.timeout(1500)
def test_bad_inputs_get_their_4xx_good_ones_their_answer_and_no_worker_dies(
    run: Path, server: ServerState, folder: StateFolder
) -> None:
    classifier, chance = Classifier.load(run), random.Random(20261124)

    def judge(data: bytes) -> int | float:
        """Returns the status that the input deserves, or the probability of the class that it shows."""
        if data.lstrip()[:1] == b"{":  # JSON that cannot be parsed or shows no image; random bytes may begin so too
            return 400
        try:
            return float(classifier.probabilities(pixels_from_bytes(data, SPEC)[None]).max())
        except ImageError as err:
            return err.status

    good = collect(lambda: make_picture(chance), judge, wanted=float)
    bad = collect(lambda: spoil(make_picture(chance), chance), judge, wanted=int)
    inputs = [pair for pairs in zip(good, bad, strict=True) for pair in pairs]
    workers = read_workers(server, folder)
    url, token = f"{server.inference_url}/predictions/{server.model}", inference_token(server, folder)
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/octet-stream"}
    local = threading.local()

    def send(item: tuple[bytes, object]) -> str:
        """Returns what is wrong with an answer; nothing where it is right."""
        data, expected = item
        local.session = getattr(local, "session", None) or requests.Session()
        answer = local.session.post(url, data=data, headers=headers, timeout=60)
        if isinstance(expected, float):
            if answer.status_code != 200:
                return f"{answer.status_code} for a good one"
            best = answer.json()["predictions"][0]["probability"]
            return "" if math.isclose(best, expected, abs_tol=1e-4) else f"{best} instead of {expected}"
        if answer.status_code != expected:
            return f"{answer.status_code} instead of {expected}: {answer.text[:200]} for {data[:40]!r}"
        return "" if json.loads(answer.text)["error"]["reason"] else "no reason"

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        faults = Counter(fault for fault in pool.map(send, inputs) if fault)
    assert not faults, faults.most_common(5)
    assert read_workers(server, folder) == workers
    statuses = Counter(status for _, status in bad)
    assert {400, 415, 422} <= set(statuses) <= {400, 413, 415, 422}, statuses


def read_workers(server: ServerState, folder: StateFolder) -> dict[int, float]:
    """Returns the process of each worker and when it was started."""
    with management_client(server, folder) as management:
        pids = [worker.pid for worker in management.describe(server.model).workers]
    assert len(pids) == 2
    return {pid: psutil.Process(pid).create_time() for pid in pids}
