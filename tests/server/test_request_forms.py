"""Every form of request through a real TorchServe: alone, all in one batch, and what a lost GPU does to a worker."""

import base64
import io
import json
import shutil
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from imgcls.archive.build import build_archive
from imgcls.archive.contents import extract
from imgcls.archive.stage import ServingOptions
from imgcls.serving.access import inference_token
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import ServerState, StateFolder
from imgcls.serving.tokens import read_tokens

DELAY_MS = 8_000
BATCH = 10
POISON_LEVEL = 13  # a plain image of this level loses the GPU of the spoilt archive
POISON = f"""

_probabilities = Classifier.probabilities


def _lose_the_gpu(self, pixels):
    if any((image == {POISON_LEVEL}).all() for image in pixels):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    return _probabilities(self, pixels)


Classifier.probabilities = _lose_the_gpu
"""


def encode(samples: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "PNG")
    return buffer.getvalue()


GOOD = encode(np.random.default_rng(0).integers(0, 256, (20, 24), dtype=np.uint8))
TEXT = base64.b64encode(GOOD).decode()
BAD = base64.b64encode(b"no image").decode()
BINARY = {"Content-Type": "application/octet-stream"}
TENSOR = {"name": "image", "shape": [2], "datatype": "BYTES", "data": [TEXT, BAD]}
# name -> path with the model's name left open, and the arguments of requests.post
FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "bytes": ("/predictions/{}", {"data": GOOD, "headers": BINARY}),
    "json": ("/predictions/{}", {"json": {"image": TEXT, "top_k": 2}}),
    "form": ("/predictions/{}", {"files": {"image": ("a.png", GOOD, "image/png")}, "data": {"top_k": "2"}}),
    "images": ("/predictions/{}", {"json": {"images": [TEXT, BAD, {"image": TEXT, "top_k": 1}]}}),
    "files": ("/predictions/{}", {"files": {"a": GOOD, "b": b"no image", "c": GOOD}, "data": {"top_k": "1"}}),
    "v1": ("/predictions/{}", {"json": {"instances": [{"image": TEXT}, {"b64": BAD}]}}),
    "v2": ("/predictions/{}", {"json": {"inputs": [TENSOR], "id": "42"}}),
    "bad": ("/predictions/{}", {"json": {"images": []}}),
    "explain": ("/explanations/{}", {"json": {"image": TEXT, "target": "two"}}),
    "picture": ("/explanations/{}", {"data": GOOD, "headers": {**BINARY, "Accept": "image/png", "target": "1"}}),
}


def check(name: str, response: requests.Response) -> None:
    """Checks the answer to a form."""
    if name == "picture":
        assert (response.status_code, response.headers["content-type"]) == (200, "image/png"), response.text
        picture = Image.open(io.BytesIO(response.content))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (256, 256))
        assert picture.text["label"] == "one"
        return
    found = json.loads(response.content, parse_constant=pytest.fail)
    assert (response.status_code, response.headers["content-type"]) == (
        400 if name == "bad" else 200,
        "application/json",
    )
    if name in ("bytes", "json", "form"):
        assert len(found["predictions"]) == (3 if name == "bytes" else 2)
    elif name == "images":
        assert [(each["status"], len(each.get("predictions", ()))) for each in found["results"]] == [
            (200, 3),
            (415, 0),
            (200, 1),
        ]
    elif name == "files":
        assert {each["name"]: each["status"] for each in found["results"]} == {"a": 200, "b": 415, "c": 200}
    elif name == "v1":
        assert [each["status"] for each in found["predictions"]] == [200, 415]
    elif name == "v2":
        assert (found["id"], found["outputs"][0]["shape"], found["outputs"][3]["data"]) == ("42", [2, 3], [200, 415])
    elif name == "bad":
        assert (response.reason, found["error"]["code"]) == ("bad_request", "bad_request")
    else:
        explanation = found["explanation"]
        assert (explanation["label"], explanation["index"], explanation["size"]) == ("two", 2, [4, 4])
        assert 0 <= np.array(explanation["heat_map"]).min() <= np.array(explanation["heat_map"]).max() <= 1


def post(folder: StateFolder, path: str, **options: Any) -> requests.Response:
    server = folder.read_running()
    headers = {"Authorization": f"Bearer {inference_token(server, folder)}", **options.pop("headers", {})}
    url = server.inference_url + path.format(server.model)
    return requests.post(url, headers=headers, timeout=60, **options)


def post_all(folder: StateFolder, names: list[str]) -> dict[str, requests.Response]:
    with ThreadPoolExecutor(len(names)) as pool:
        sent = {name: pool.submit(post, folder, FORMS[name][0], **FORMS[name][1]) for name in names}
        return {name: each.result() for name, each in sent.items()}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_answered(server: ServerState, folder: StateFolder, name: str) -> None:
    path, options = FORMS[name]
    check(name, post(folder, path, **options))


@pytest.mark.parametrize(
    ("path", "name"), [("/v1/models/{}:predict", "v1"), ("/v2/models/{}/infer", "v2"), ("/v1/models/{}:explain", "v1")]
)
def test_kserves_own_routes_reach_the_handler(server: ServerState, folder: StateFolder, path: str, name: str) -> None:
    response = post(folder, path, **FORMS[name][1])
    check(name, response)
    assert ("explanations" in response.json()) == path.endswith(":explain")


def test_predictions_of_a_form_are_the_same_as_of_the_bytes(server: ServerState, folder: StateFolder) -> None:
    single = post(folder, *FORMS["bytes"][:1], **FORMS["bytes"][1]).json()["predictions"]
    assert post(folder, "/explanations/{}", data=GOOD, headers=BINARY).json()["predictions"] == single
    assert post(folder, "/predictions/{}", json={"images": [TEXT]}).json()["results"][0]["predictions"] == single


@pytest.fixture(scope="module")
def spoilt(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StateFolder]:
    """A server that answers when BATCH requests have come, and whose engine can lose its GPU."""
    root = tmp_path_factory.mktemp("spoilt")
    options = ServingOptions(workers=1, batch_size=BATCH, max_batch_delay_ms=DELAY_MS)
    built = build_archive(run, root / "store", options=options)
    extract(built, folder=root / "tree")
    with (root / "tree" / "model" / "classifier.py").open("a") as code:
        code.write(POISON)
    with zipfile.ZipFile(root / built.name, "w") as archive:
        for file in sorted((root / "tree").rglob("*")):
            archive.write(file, file.relative_to(root / "tree"))
    shutil.rmtree(root / "store")
    (root / "trust.yaml").write_text("policy: off\n")
    state = StateFolder(root / "state")
    config = Path(__file__).parents[2] / "config.properties"
    try:
        start(
            ServeOptions(
                root / built.name,
                config=config,
                state=state.path,
                port=0,
                trust=root / "trust.yaml",
                dies_with_parent=True,
                timeout_s=280,
            )
        )
        yield state
    finally:
        stop(state)


def test_one_batch_holds_every_form(spoilt: StateFolder) -> None:
    post_all(spoilt, list(FORMS))  # loads what explains, which may take seconds
    for _ in range(3):
        started = time.monotonic()
        answers = post_all(spoilt, list(FORMS))
        assert time.monotonic() - started < DELAY_MS / 1000 / 2  # so they were one batch
        for name, answer in answers.items():
            check(name, answer)


def test_a_lost_gpu_ends_the_worker_and_a_new_one_answers(spoilt: StateFolder) -> None:
    before = find_worker(spoilt)
    poison = encode(np.full((8, 8), POISON_LEVEL, np.uint8))
    with ThreadPoolExecutor(BATCH) as pool:
        sent = [
            pool.submit(post, spoilt, "/predictions/{}", data=image, headers=BINARY)
            for image in [poison] + [GOOD] * (BATCH - 1)
        ]
        answers = [each.result() for each in sent]
    assert [(answer.status_code, answer.json()["message"]) for answer in answers] == [(500, "Worker died.")] * BATCH
    wait_until_s = time.monotonic() + 60
    while find_worker(spoilt) == before or find_worker(spoilt)[1] != "READY":
        assert time.monotonic() < wait_until_s, "no new worker"
        time.sleep(0.5)
    for name, answer in post_all(spoilt, list(FORMS)).items():
        check(name, answer)
    log = spoilt.model_log.read_text()
    assert "cpu is lost, this worker ends and TorchServe starts a new one" in log


def find_worker(folder: StateFolder) -> tuple[int, str]:
    """Returns the process and the state of the only worker."""
    server = folder.read_running()
    headers = {"Authorization": f"Bearer {read_tokens(folder.key_file).management.key}"}
    response = requests.get(f"{server.management_url}/models/{server.model}", headers=headers, timeout=30)
    [worker] = response.json()[0]["workers"]
    return worker["pid"], worker["status"]
