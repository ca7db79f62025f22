"""The in-process harness answers as a real TorchServe does: same archive, same requests, same answers.

Ours runs in the session's server, under the project's configuration. A handler that misbehaves in every way runs beside
it in a server of its own, under TorchServe's default of parsing bodies.
"""

import base64
import io
import json
import shutil
import statistics
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image

from bench.tiny import make_tiny_run
from imgcls.archive.build import build_archive
from imgcls.archive.golden import read_golden
from imgcls.archive.stage import ServingOptions
from imgcls.archive.testing import Part, Request, ServedArchive, load_archive
from imgcls.errors import ArchiveError
from imgcls.serving.access import inference_token
from imgcls.serving.processes import find_marked
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import ServerState, StateFolder
from imgcls.serving.tokens import read_tokens
from model.tiff import write_tiff

ODD_HANDLER = """
import sys

import torch
from ts.handler_utils.utils import send_intermediate_predict_response
from ts.utils.util import PredictionException


def handle(data, context):
    return [answer(item, context) for item in data] if data else None


def answer(item, context):
    wish = item.get("body")
    wish = bytes(wish).decode(errors="replace") if isinstance(wish, bytearray) else wish
    if wish == "raise":
        raise ValueError("no")
    if wish == "cuda":
        raise RuntimeError("CUDA error: device-side assert triggered")
    if wish == "memory":
        raise MemoryError
    if wish == "refuse":
        raise PredictionException("you can't <have> that & this: 'ü'", 413)
    if wish == "teapot":
        raise PredictionException("a teapot", 418)
    if wish == "lie":
        raise PredictionException("all is well", 200)
    if wish == "object":
        return object()
    if wish == "exit":
        sys.exit(0)
    if wish == "status":
        context.set_response_status(code=429, phrase="Slow Down", idx=0)
        context.set_response_header(0, "X-Odd", "yes")
        context.set_response_content_type(0, "text/csv")
        return "a,b"
    if wish == "stream":
        for part in ("a", "b"):
            send_intermediate_predict_response([part], context.request_ids, "Intermediate", 200, context)
        return "c"
    if wish == "tensor":
        return torch.zeros(2)
    if wish == "nan":
        return {"value": float("nan")}
    if wish == "bytes":
        return bytes(range(256))
    names = (*item, "explain", "describe", "url_path", "top_k")
    headers = {name: context.get_request_header(0, name) for name in names}
    return {"parts": {name: [type(value).__name__, repr(value)] for name, value in item.items()}, "headers": headers}
"""
SHORT_HANDLER = "def handle(data, context):\n    return []\n"
DICT_HANDLER = "def handle(data, context):\n    return {}\n"

# What is sent over HTTP, as the arguments of requests.post, and the same for the harness.
JSON_TYPE = {"Content-Type": "application/json"}
REQUESTS: dict[str, tuple[dict[str, Any], Any]] = {
    **{
        wish: ({"data": wish.encode()}, wish.encode())
        for wish in (
            "raise",
            "cuda",
            "memory",
            "refuse",
            "teapot",
            "lie",
            "object",
            "status",
            "stream",
            "tensor",
            "nan",
        )
    },
    "bytes": ({"data": b"bytes"}, b"bytes"),
    "raw": ({"data": b"\x00\xff"}, b"\x00\xff"),
    "empty": ({"data": b""}, b""),
    "json": ({"json": {"a": [1, "ü"]}}, {"a": [1, "ü"]}),
    "broken json": (
        {"data": b"{broken \xff", "headers": JSON_TYPE},
        Request(b"{broken \xff", content_type="application/json"),
    ),
    "text": (
        {"data": "grün".encode(), "headers": {"Content-Type": "text/plain; charset=utf-8"}},
        Request("grün".encode(), content_type="text/plain; charset=utf-8"),
    ),
    "header": ({"data": b"x", "headers": {"top_k": "3"}}, Request(b"x", headers={"top_k": "3"})),
    "form": (
        {"data": {"top_k": "3"}, "files": {"image": ("a.png", b"\x89PNG", "image/png"), "other": ("b", b"1")}},
        {"top_k": "3", "image": Part(b"\x89PNG", "image/png"), "other": b"1"},
    ),
    "json in a form": (
        {"files": {"image": ("a.json", b'{"a": 1}', "application/json")}},
        Request(fields={"image": Part(b'{"a": 1}', "application/json")}),
    ),
}


def compare(response: requests.Response, answer: Any) -> None:
    got = (response.status_code, response.reason, response.headers.get("content-type", ""), response.content)
    assert got == (answer.status, answer.phrase, answer.content_type, answer.body)
    assert set(answer.headers) <= {name.lower() for name in response.headers}


def pack(mar: Path, code: str) -> Path:
    """Writes an archive as torch-model-archiver lays it out, by hand: its command takes a second."""
    manifest = {
        "runtime": "python",
        "model": {"modelName": mar.stem, "modelVersion": "1.0", "handler": f"{mar.stem}.py"},
    }
    with zipfile.ZipFile(mar, "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        file.writestr(f"{mar.stem}.py", code)
    return mar


def register(folder: StateFolder, name: str) -> None:
    """Has a server load an archive that lies in its model store."""
    headers = {"Authorization": f"Bearer {read_tokens(folder.key_file).management.key}"}
    query = {"url": f"{name}.mar", "initial_workers": 1, "synchronous": "true"}
    url = f"{folder.read_running().management_url}/models"
    response = requests.post(url, params=query, headers=headers, timeout=120)
    assert response.status_code == 200, response.text


@pytest.fixture(scope="module")
def odd_start(
    archive: Path, ts_config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[StateFolder, float, float]]:
    """A server that may register models, with those of this file.

    Its state folder, how long it took to start, and how much of the processors' time.
    """
    folder = tmp_path_factory.mktemp("odd")
    shutil.copyfile(archive, folder / "imgcls.mar")
    config = ts_config.read_text().replace("enable_model_api=false", "enable_model_api=true")
    (folder / "config.properties").write_text(config.replace("decode_input_request=false", "decode_input_request=true"))
    state = StateFolder(folder / "state")
    options = ServeOptions(
        folder / "imgcls.mar", config=folder / "config.properties", state=state.path, port=0, dies_with_parent=True
    )
    try:
        began_s = time.monotonic()
        start(options)
        took_s = time.monotonic() - began_s
        times = [process.cpu_times() for process in find_marked(state.read_running().server_id)]
        for name, code in (("odd", ODD_HANDLER), ("short", SHORT_HANDLER), ("dict_", DICT_HANDLER)):
            pack(folder / f"{name}.mar", code)
            register(state, name)
        yield state, took_s, sum(each.user + each.system for each in times)
    finally:
        stop(state)


@pytest.fixture(scope="module")
def odd(odd_start: tuple[StateFolder, float, float]) -> StateFolder:
    return odd_start[0]


@pytest.fixture(scope="module")
def odd_harness(odd: StateFolder) -> Iterator[ServedArchive]:
    with load_archive(odd.path.parent / "odd.mar") as served:
        yield served


def post(folder: StateFolder, path: str, *, headers: dict[str, str] | None = None, **options: Any) -> requests.Response:
    server = folder.read_running()
    token = {"Authorization": f"Bearer {inference_token(server, folder)}"}
    return requests.post(f"{server.inference_url}{path}", headers={**token, **(headers or {})}, timeout=30, **options)


@pytest.mark.parametrize("name", REQUESTS)
def test_every_oddity_is_answered_alike(odd: StateFolder, odd_harness: ServedArchive, name: str) -> None:
    sent, request = REQUESTS[name]
    [answer] = odd_harness.predict([request])
    compare(post(odd, "/predictions/odd", **sent), answer)


def test_explanations_and_the_legacy_routes_query_are_handed_over_alike(
    odd: StateFolder, odd_harness: ServedArchive
) -> None:
    compare(post(odd, "/explanations/odd", data=b"x"), *odd_harness.explain([b"x"]))
    sent = post(odd, "/odd/predict?top_k=3", data=b"x")
    [answer] = odd_harness.predict([Request(b"x", query={"top_k": "3"})])
    assert (
        sent.json()["parts"]
        == answer.json()["parts"]
        == {
            "top_k": ["bytearray", "bytearray(b'3')"],
            "body": ["bytearray", "bytearray(b'x')"],
        }
    )


def test_a_description_is_what_the_management_api_shows(odd: StateFolder, odd_harness: ServedArchive) -> None:
    server = odd.read_running()
    headers = {"Authorization": f"Bearer {read_tokens(odd.key_file).management.key}"}
    url = f"{server.management_url}/models/odd/1.0"
    response = requests.get(url, params={"customized": "true"}, headers=headers, timeout=30)
    [shown] = response.json()
    described = odd_harness.describe().json()
    assert described["parts"] == {}
    assert shown["customizedMetadata"] == {
        "parts": {},
        "headers": {name: value for name, value in described["headers"].items() if value is not None},
    }


@pytest.mark.parametrize("name", ["short", "dict_"])
def test_a_handler_that_returns_no_list_of_the_batchs_length_is_answered_alike(odd: StateFolder, name: str) -> None:
    with load_archive(odd.path.parent / f"{name}.mar") as served:
        compare(post(odd, f"/predictions/{name}", data=b"x"), *served.predict([b"x"]))


def test_a_handler_that_ends_its_worker_is_told_apart(odd: StateFolder) -> None:
    with load_archive(odd.path.parent / "odd.mar") as served, pytest.raises(ArchiveError, match="500 Worker died"):
        served.predict([b"exit"])
    response = post(odd, "/predictions/odd", data=b"exit")
    assert (response.status_code, response.json()["message"]) == (500, "Worker died.")


def test_the_projects_handler_answers_alike(server: ServerState, folder: StateFolder, archive: Path) -> None:
    image = read_golden(archive)[0].data
    encoded = base64.b64encode(image).decode()
    buffer = io.BytesIO()
    Image.new("CMYK", (30, 20), (9, 99, 200, 0)).save(buffer, "JPEG")
    binary = {"Content-Type": "application/octet-stream"}

    def typed(data: bytes) -> tuple[dict[str, Any], Any]:
        return {"data": data, "headers": binary}, Request(data, content_type="application/octet-stream")

    both = [
        typed(image),
        typed(buffer.getvalue()),
        typed(image[: len(image) // 2]),
        typed(b""),
        typed(b"this is no image"),
        ({"json": {"image": encoded, "top_k": 1}}, {"image": encoded, "top_k": 1}),
        ({"json": {"image": "?"}}, {"image": "?"}),
        ({"json": [1]}, [1]),
        (
            {"files": {"image": ("a.png", image, "image/png")}, "data": {"top_k": "2"}},
            {"top_k": "2", "image": Part(image, "image/png")},
        ),
        ({"data": image, "headers": {**binary, "top_k": "none"}}, Request(image, headers={"top_k": "none"})),
    ]
    environment = {"IMGCLS_WORKERS": "1"}  # the server has it too: the same threads, and so the same bits
    with load_archive(archive, batch_size=16, decode_input_request=False, environment=environment) as served:
        for sent, request in both:
            compare(post(folder, f"/predictions/{server.model}", **sent), *served.predict([request]))
        explained = post(folder, f"/explanations/{server.model}", data=image, headers=binary)
        compare(explained, *served.explain([image]))
        statuses = [answer.status for answer in served.predict([request for _, request in both])]
    assert statuses == [200, 200, 422, 400, 415, 200, 400, 415, 200, 400]


def test_an_archive_of_bands_answers_alike(odd: StateFolder, tmp_path: Path) -> None:
    run = make_tiny_run(tmp_path / "run", ranges=((0, 4095),) * 4)
    mar = build_archive(run, odd.path.parent, name="bands", options=ServingOptions(workers=1))
    register(odd, "bands")
    samples = np.random.default_rng(0).integers(0, 4096, (4, 20, 24), dtype=np.uint16)
    buffer = io.BytesIO()
    Image.new("RGBA", (8, 8)).save(buffer, "PNG")
    bodies = [write_tiff(samples), write_tiff(samples[:3]), buffer.getvalue()]
    binary, png = {"Content-Type": "application/octet-stream"}, {"Accept": "image/png"}
    sent = [post(odd, "/predictions/bands", data=body, headers=binary) for body in bodies]
    drawn = post(odd, "/explanations/bands", data=bodies[0], headers=binary | png)
    with load_archive(mar, environment={"IMGCLS_WORKERS": "1"}) as served:  # the same threads, and so the same bits
        for response, answer in zip(sent, served.predict(bodies), strict=True):
            compare(response, answer)
        compare(drawn, *served.explain([Request(bodies[0], headers=png)]))
    assert [response.status_code for response in sent] == [200, 415, 415]
    assert Image.open(io.BytesIO(drawn.content)).mode == "RGB"


def test_the_harness_takes_a_fraction_of_a_servers_start(
    odd_start: tuple[StateFolder, float, float], archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, seconds, busy = read_golden(archive)[0].data, [], []
    for _ in range(7):
        began_s, began_busy_s = time.monotonic(), time.process_time()
        with load_archive(archive) as served:
            assert served.predict([image])[0].status == 200
        seconds.append(time.monotonic() - began_s)
        busy.append(time.process_time() - began_busy_s)
    _, server_s, server_busy_s = odd_start
    harness_s, harness_busy_s = statistics.median(seconds), statistics.median(busy)
    with capsys.disabled():
        print(f" server {server_s:.2f} s, harness {harness_s:.3f} s, ratio {server_s / harness_s:.0f}", end="")
        print(f"; of the processors {server_busy_s:.2f} s and {harness_busy_s:.3f} s", end="")
    assert server_busy_s > 20 * harness_busy_s  # the processors' time, which other work on the machine does not change
