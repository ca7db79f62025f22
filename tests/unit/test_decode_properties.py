"""Whatever the bytes, decoding gives the right shape or an ImageError with a reason; nothing else, and silently.

hypothesis mutates valid files of each format, mode and option. What it finds stays in the process: no database.
"""

import io
import logging
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from model.errors import ImageError
from model.images import decode_image
from model.preprocess import pixels_from_bytes
from model.spec import ModelSpec

MAX_PIXELS = 1_000_000
MAX_SECONDS = 3.0  # of this thread's processor time; the slowest takes a tenth
MEMORY_BYTES = 400_000_000  # more than the process had; MAX_PIXELS take 16 MB
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SIGNATURES = (
    b"",
    b"\xff\xd8\xff",
    b"\x89PNG\r\n\x1a\n",
    b"RIFF\x00\x00\x00\x00WEBP",
    b"BM",
    b"GIF89a",
    b"II*\x00",
    b"MM\x00*",
)
OPTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
    *(("JPEG", mode, {"progressive": True}) for mode in ("L", "RGB", "CMYK")),
    ("JPEG", "RGB", {"subsampling": 0, "restart_marker_blocks": 1}),
    ("JPEG", "RGB", {"keep_rgb": True}),
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ("PNG", "P", {"transparency": b"\x00\x80"}),
    *(("WEBP", mode, {"lossless": lossless}) for mode in ("RGB", "RGBA") for lossless in (False, True)),
    *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    *(("GIF", mode, {}) for mode in ("L", "P", "RGB")),
    *(("TIFF", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "F")),
    *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "zstd")),
    *(("TIFF", "1", {"compression": name}) for name in ("group3", "group4")),
    *((kind, "RGB", {"save_all": True}) for kind in ("GIF", "PNG", "WEBP", "TIFF", "MPO")),
)


def make_file(kind: str, mode: str, options: dict[str, Any], *, width: int, height: int) -> bytes:
    values = np.random.default_rng(width * 100 + height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    picture = Image.fromarray(values)
    picture = Image.fromarray(values[..., 0].astype(np.uint16) * 257) if mode == "I;16" else picture.convert(mode)
    exif = Image.Exif()
    exif[274] = width % 8 + 1
    extra = {"exif": exif} if kind in {"JPEG", "PNG", "WEBP", "TIFF"} and "compression" not in options else {}
    if options.get("save_all"):
        extra = {"append_images": [picture.transpose(Image.Transpose.ROTATE_180)] * 2}
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options, **extra)
    return buffer.getvalue()


FILES = tuple(
    make_file(*option, width=width, height=height)
    for option in OPTIONS
    for width, height in ((1, 1), (17, 9), (40, 24))
)


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    """A valid file with bytes set, bits flipped, parts cut, moved or repeated, or another file's tail."""
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(0, 6))):
        at = draw(st.integers(0, max(0, min(len(data), draw(st.sampled_from((64, 700, 10**6)))) - 1)))
        length = draw(st.integers(1, 64))
        match draw(st.sampled_from(("set", "flip", "fill", "cut", "insert", "repeat", "truncate", "splice"))):
            case "set" if data:
                data[at] = draw(st.sampled_from((0, 1, 0x7F, 0x80, 0xFE, 0xFF)) | st.integers(0, 255))
            case "flip" if data:
                data[at] ^= 1 << draw(st.integers(0, 7))
            case "fill":
                data[at : at + length] = bytes([draw(st.sampled_from((0, 0xFF)))]) * len(data[at : at + length])
            case "cut":
                del data[at : at + length]
            case "insert":
                data[at:at] = draw(st.binary(max_size=16))
            case "repeat":
                data[at:at] = data[at : at + length] * draw(st.sampled_from((1, 10, 1000)))
            case "truncate":
                del data[at:]
            case "splice":
                other = draw(st.sampled_from(FILES))
                data[at:] = other[min(at, len(other)) :]
    return bytes(data)


any_bytes = st.builds(bytes.__add__, st.sampled_from(SIGNATURES), st.binary(max_size=400))
thorough = settings(
    max_examples=400,
    database=None,
    deadline=None,  # processor time is measured below
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", autouse=True)
def memory_is_bounded() -> Iterator[None]:
    """Lets a decode that asks for much memory fail with MemoryError, which is no ImageError."""
    if sys.platform != "linux":
        yield
        return
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes + MEMORY_BYTES, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def check_decoding(data: bytes, *, channels: int) -> bool:
    """Decodes, checks the promise, and returns whether there was a picture."""
    start = time.thread_time()
    try:
        image = decode_image(data, channels=channels, max_pixels=MAX_PIXELS)
    except ImageError as err:
        assert str(err)
        assert "\n" not in str(err)
        assert 400 <= err.status < 500
        return False
    finally:
        assert time.thread_time() - start < MAX_SECONDS
    assert image.mode == MODES[channels]
    assert np.asarray(image).shape[:2] == (image.height, image.width)
    assert 0 < image.width * image.height <= MAX_PIXELS
    return True


@pytest.mark.parametrize("data", FILES[2::3], ids=[f"{kind} {mode} {options}" for kind, mode, options in OPTIONS])
def test_each_file_decodes_before_it_is_mutated(data):
    try:
        assert check_decoding(data, channels=3)
    except AssertionError:
        with pytest.raises(ImageError, match="32-bit samples"):  # TIFF of floats
            decode_image(data, channels=3)


@pytest.mark.parametrize("data", FILES[2::3], ids=[f"{kind} {mode} {options}" for kind, mode, options in OPTIONS])
def test_a_bytearray_decodes_as_bytes_do(data):
    def outcome(content: bytes | bytearray) -> object:
        try:
            return decode_image(content, channels=3).tobytes()
        except ImageError as err:
            return str(err)

    assert outcome(bytearray(data)) == outcome(data)


@thorough
@given(data=mutated_files(), channels=st.sampled_from((1, 3, 4)))
def test_any_mutation_decodes_or_is_refused_with_a_reason(data, channels, caplog, capsys):
    with caplog.at_level(logging.WARNING):
        check_decoding(data, channels=channels)
    assert not caplog.records
    assert capsys.readouterr() == ("", "")


@thorough
@given(data=any_bytes, channels=st.sampled_from((1, 3, 4)))
@example(data=b"", channels=3)
@example(data=b"\xff\xd8\xff\xda", channels=3)
@example(data=b"\xff\xd8\xff", channels=3)
@example(data=b"\x89PNG\r\n\x1a\n" + b"\xff" * 12, channels=3)
def test_any_bytes_decode_or_are_refused_with_a_reason(data, channels):
    check_decoding(data, channels=channels)


@thorough
@given(
    data=mutated_files(),
    channels=st.sampled_from((1, 3, 4)),
    size=st.integers(1, 20),
    margin=st.integers(0, 3),
    interpolation=st.sampled_from(("nearest", "bilinear", "bicubic", "lanczos")),
)
def test_any_mutation_gives_the_input_shape_or_is_refused(data, channels, size, margin, interpolation):
    spec = ModelSpec(
        channels=channels,
        size=size,
        resize=size + margin,
        interpolation=interpolation,
        mean=(0.5,) * channels,
        std=(0.5,) * channels,
        classes=("a", "b"),
    )
    try:
        pixels = pixels_from_bytes(data, spec, max_pixels=MAX_PIXELS)
    except ImageError as err:
        assert str(err)
        return
    assert (pixels.shape, pixels.dtype) == ((channels, size, size), np.uint8)
