"""What the engine may do to a batch: fail at one image, run out of memory, lose its GPU, answer NaN."""

import base64
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from handler.device_errors import answers, is_device_error, is_out_of_memory
from imgcls.errors import ArchiveError

RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)
OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB"),
    RuntimeError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: you tried to …"),
    RuntimeError("Failed to allocate memory for requested buffer of size 12345"),
    RuntimeError("std::bad_alloc"),
    MemoryError(),
]
DEVICE_LOST = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously reported"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm(…)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
    RuntimeError("CUDA failure 700: an illegal memory access was encountered ; GPU=0"),
    RuntimeError("cudaErrorIllegalAddress"),
]


@pytest.fixture
def images(encode) -> list[bytes]:
    return [encode(Image.new("RGB", (8, 8), color), "PNG") for color in (RED, GREEN, BLUE, RED)]


@pytest.fixture
def spoil(load, unpacked) -> Callable:
    """spoil(change) -> an archive whose network runs behind change(pixels, run)."""

    def patch(change):
        served = load(unpacked, batch_size=16)
        with served.active():
            handler = served.service._entry_point.__self__._classifier
            handler.batch_size = 4
            run = handler.classifier.probabilities
            handler.classifier.probabilities = lambda pixels: change(pixels, run)
        return served

    return patch


def is_green(pixels: np.ndarray) -> np.ndarray:
    return pixels[:, 1].mean(axis=(1, 2)) > 200


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_too_little_memory_for_a_batch_is_enough_for_its_parts(spoil, images, error):
    def change(pixels, run):
        if len(pixels) > 1:
            raise error
        return run(pixels)

    assert [answer.status for answer in spoil(change).predict(images)] == [200] * 4


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_an_image_for_which_memory_is_too_little_gets_507_and_the_worker_lives(spoil, images, error):
    def change(pixels, run):
        if is_green(pixels).any():
            raise error
        return run(pixels)

    served = spoil(change)
    answers = served.predict(images)
    assert [answer.status for answer in answers] == [200, 507, 200, 200]
    assert answers[1].json()["error"]["code"] == "out_of_memory"
    assert served.predict(images[:1])[0].status == 200


def test_an_image_at_which_the_engine_fails_fails_alone(spoil, images):
    def change(pixels, run):
        if is_green(pixels).any():
            raise ValueError("odd\npixels")
        return run(pixels)

    text = base64.b64encode(images[1]).decode()
    *single, many = spoil(change).predict([*images, {"images": [base64.b64encode(images[0]).decode(), text]}])
    assert [answer.status for answer in single] == [200, 500, 200, 200]
    assert single[1].json()["error"] == {"code": "engine_failed", "reason": "ValueError: odd pixels"}
    assert [result["status"] for result in many.json()["results"]] == [200, 500]


@pytest.mark.parametrize("error", DEVICE_LOST, ids=lambda error: str(error).partition("\n")[0])
def test_a_lost_gpu_ends_the_worker(spoil, images, error):
    def change(pixels, run):
        raise error

    served = spoil(change)
    with pytest.raises(ArchiveError, match=r"ends its worker \(SystemExit: cpu is lost: .*500 Worker died"):
        served.predict(images)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", ["image", "images", "instances", "inputs"])
def test_nan_never_leaves_as_json(spoil, images, form, value):
    def change(pixels, run):
        rows = run(pixels).copy()
        rows[is_green(pixels), 0] = value
        return rows

    texts = [base64.b64encode(image).decode() for image in images[:2]]
    tensor = {"name": "image", "shape": [2], "datatype": "BYTES", "data": texts}
    body = {"image": {"image": texts[1]}, "inputs": {"inputs": [tensor]}}.get(form, {form: texts})
    [answer] = spoil(change).predict([body])
    json.loads(answer.body, parse_constant=pytest.fail)
    assert answer.status == (500 if form == "image" else 200)
    assert b"non_finite_answer" in answer.body


def test_an_error_is_told_by_what_caused_it():
    try:
        try:
            raise DEVICE_LOST[0]
        except RuntimeError as err:
            raise ValueError("an engine's own words") from err
    except ValueError as err:
        wrapped = err
    assert is_device_error(wrapped)
    assert not is_out_of_memory(wrapped)
    assert not is_device_error(ValueError("the word CUDA alone says nothing"))
    assert all(is_out_of_memory(error) and not is_device_error(error) for error in OUT_OF_MEMORY)


def test_a_cpu_cannot_be_asked_whether_it_lives():
    assert not answers("cpu")
    if not torch.cuda.is_available():
        assert not answers("cuda:0")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_that_computes_is_not_lost():
    assert answers("cuda:0")
