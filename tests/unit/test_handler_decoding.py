"""Decoding on several threads: the same answers as on one, in order, each for itself, within one image's memory."""

import struct
import threading
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

import handler.decoding
from handler.decoding import Decoder
from handler.errors import RequestError
from handler.options import Options
from handler.request import ImageRequest
from handler.settings import HandlerSettings
from handler.sources import JsonImage, RawImage
from model.images import peek_pixels
from model.spec import ModelSpec

SPEC = ModelSpec(size=4, resize=4, mean=(0.5,) * 3, std=(0.5,) * 3, classes=("a", "b"))


def ask(value: object, *, source: type = RawImage) -> ImageRequest:
    return ImageRequest(source(value), Options(top_k=1))


def make_decoder(*, threads: int, max_pixels: int = 50_000_000) -> Decoder:
    return Decoder(SPEC, HandlerSettings(max_pixels=max_pixels), device="cpu", threads=threads)


@pytest.fixture
def images(encode) -> list[bytes]:
    return [encode(Image.new("RGB", (10 + number, 10), (number, 0, 0)), "PNG") for number in range(12)]


def test_several_threads_decode_what_one_does_in_the_same_order(images):
    mixed = [ask(data) for data in images]
    mixed[1:1] = [ask(b"no image"), RequestError("odd"), ask("###", source=JsonImage), ask(images[0][:40]), ask(b"")]
    one, several = (make_decoder(threads=threads).decode(mixed) for threads in (1, 4))
    assert [getattr(each, "status", 200) for each in several] == [200, 415, 400, 400, 422, 400] + [200] * 11
    for left, right in zip(one, several, strict=True):
        if isinstance(left, np.ndarray):
            np.testing.assert_array_equal(left, right)
        else:
            assert (type(left), str(left)) == (type(right), str(right))


def test_two_images_are_decoded_at_the_same_time(images, monkeypatch):
    together = threading.Barrier(2)
    decode = handler.decoding.pixels_from_bytes

    def wait_for_the_other(*args, **kwargs):
        together.wait(timeout=20)
        return decode(*args, **kwargs)

    monkeypatch.setattr(handler.decoding, "pixels_from_bytes", wait_for_the_other)
    assert all(
        isinstance(each, np.ndarray) for each in make_decoder(threads=2).decode([ask(each) for each in images[:2]])
    )


def test_images_in_memory_have_no_more_pixels_together_than_one_may(images, monkeypatch):
    lock, now, most = threading.Lock(), 0, 0

    def decode(data, *args, **kwargs):
        nonlocal now, most
        with lock:
            now += peek_pixels(data)
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= peek_pixels(data)
        return np.zeros((3, 4, 4), np.uint8)

    monkeypatch.setattr(handler.decoding, "pixels_from_bytes", decode)
    make_decoder(threads=8, max_pixels=450).decode([ask(each) for each in images])  # 100 to 210 pixels each
    assert 210 < most <= 450


def test_an_image_of_too_many_pixels_fails_alone(images, encode):
    large = encode(Image.new("RGB", (100, 100)), "PNG")
    decoded = make_decoder(threads=4, max_pixels=500).decode([ask(images[0]), ask(large), ask(images[1])])
    assert [getattr(each, "status", 200) for each in decoded] == [200, 413, 200]


def test_what_nobody_thought_of_is_that_images_own_500(images, monkeypatch):
    decode = handler.decoding.pixels_from_bytes

    def fail_at_the_first(data, *args, **kwargs):
        if data == images[0]:
            raise KeyError("a defect")
        return decode(data, *args, **kwargs)

    monkeypatch.setattr(handler.decoding, "pixels_from_bytes", fail_at_the_first)
    decoded = make_decoder(threads=4).decode([ask(each) for each in images])
    assert [getattr(each, "status", 200) for each in decoded] == [500] + [200] * 11


def test_a_lost_gpu_ends_the_worker_from_whichever_thread_finds_it(images, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(handler.decoding, "pixels_from_bytes", fail)
    with pytest.raises(SystemExit):
        make_decoder(threads=4).decode([ask(each) for each in images])


def test_peeking_does_not_unpack_what_decoding_would_refuse(encode):
    png = encode(Image.new("RGB", (16, 16)), "PNG")
    payload = b"a\0\0" + zlib.compress(bytes(1_000_000))
    profile = struct.pack("!I", len(payload)) + b"iCCP" + payload + struct.pack("!I", zlib.crc32(b"iCCP" + payload))
    start = png.index(b"IDAT") - 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PngImagePlugin.PngStream, "chunk_iCCP", lambda *args: pytest.fail("a profile was unpacked"))
        assert peek_pixels(png[:start] + profile * 1000 + png[start:]) == 0


def test_an_unreadable_header_counts_for_nothing(images):
    assert peek_pixels(images[0]) == 100
    assert peek_pixels(images[0][:20]) == peek_pixels(b"") == peek_pixels(b"no image") == 0
