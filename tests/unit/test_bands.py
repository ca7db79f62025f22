"""TIFFs of any number of bands: read as other writers wrote them, and refused with a reason where they cannot be."""

import io
import itertools
import resource
import struct
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from imgcls.data.perturb import Perturbation
from model.bands import Bands, count_samples, decode_bands, is_no_picture, read_bands
from model.errors import (
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    SpecError,
    UndecodableImageError,
    UnsupportedImageError,
)
from model.images import decode_image, peek_pixels
from model.preprocess import pixels_from_bytes
from model.spec import ModelSpec, dump_spec, read_spec
from model.tiff import MAX_BLOCKS, read_samples, read_tiff_header, write_tiff

MAX_SAMPLES = 1_000_000
MEMORY_BYTES = 400_000_000
TWO = np.array([[[0, 100], [200, 300]], [[5, 6], [7, 8]]], np.uint16)


def make_samples(shape: tuple[int, int, int], *, bits: int = 16, seed: int = 0) -> np.ndarray:
    """Noise over all values, (bands, height, width), whose neighbours' differences wrap around."""
    return np.random.default_rng(seed).integers(0, 2**bits, shape).astype(f"u{bits // 8}")


def make_tiff(samples: np.ndarray, **options) -> bytes:
    """Written by tifffile, which shares no code with the reader."""
    buffer = io.BytesIO()
    planar = options.setdefault("planarconfig", "contig")
    data = samples if planar == "separate" else samples.transpose(1, 2, 0)
    if len(samples) == 1:
        data, options["planarconfig"] = samples[0], None
    tifffile.imwrite(buffer, data, photometric="minisblack", **options)
    return buffer.getvalue()


def with_tag(data: bytes, tag: int, value: int, *, kind: int = 4) -> bytes:
    """Gives a little-endian TIFF another value of one of its numbers, of one of TIFF's types."""
    (start,) = struct.unpack_from("<L", data, 4)
    (count,) = struct.unpack_from("<H", data, start)
    places = range(start + 2, start + 2 + 12 * count, 12)
    place = next(each for each in places if struct.unpack_from("<H", data, each) == (tag,))
    return data[: place + 2] + struct.pack("<HLL", kind, 1, value) + data[place + 12 :]


def make_spec(ranges, **options) -> ModelSpec:
    count = len(ranges)
    fields = {"size": 2, "resize": 2, "mean": (0.0,) * count, "std": (1.0,) * count, "classes": ("a", "b")}
    return ModelSpec(**{**fields, "channels": count, "ranges": ranges, **options})


@pytest.fixture
def little_memory():
    """Whoever asks for much more than the samples take gets MemoryError, which no test expects."""
    if sys.platform != "linux":
        yield
        return
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{}, {"rowsperstrip": 7}, {"tile": (16, 32)}], ids=["whole", "strips", "tiles"])
@pytest.mark.parametrize("packing", [{}, {"compression": "zlib"}, {"compression": "zlib", "predictor": True}], ids=str)
def test_all_layouts_come_out_as_they_were_written(byte_order, planar, layout, packing):
    for bits, bands, size in itertools.product((8, 16), (1, 2, 5, 13), ((50, 70), (1, 1))):
        samples = make_samples((bands, *size), bits=bits)
        data = make_tiff(samples, byteorder=byte_order, planarconfig=planar, **layout, **packing)
        assert np.array_equal(read_samples(data, read_tiff_header(data)), samples), (bits, bands, size)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits", "zstd"])
@pytest.mark.parametrize("predictor", [1, 2])
def test_what_libtiff_packed_is_unpacked(compression, predictor):
    samples = make_samples((3, 40, 60), bits=8)
    buffer = io.BytesIO()
    tags = {317: predictor} if compression not in {"raw", "packbits"} else {}
    Image.fromarray(samples.transpose(1, 2, 0)).save(buffer, "TIFF", compression=compression, tiffinfo=tags)
    data = buffer.getvalue()
    assert np.array_equal(read_samples(data, read_tiff_header(data)), samples)


def test_what_is_written_tifffile_reads():
    samples = make_samples((13, 20, 30))
    assert np.array_equal(tifffile.imread(io.BytesIO(write_tiff(samples))), samples.transpose(1, 2, 0))


def test_each_band_has_its_own_range_and_clips():
    bands = decode_bands(write_tiff(TWO), ranges=[(100, 200), (5, 8)])
    assert [np.asarray(plane).tolist() for plane in bands.planes] == [[[0, 0], [255, 255]], [[0, 85], [170, 255]]]


def test_pixels_are_the_bands_resized_each():
    samples = make_samples((6, 40, 60))
    spec = make_spec([(0, 65_535)] * 6, size=16, resize=20)
    pixels = pixels_from_bytes(write_tiff(samples), spec)
    alone = [
        pixels_from_bytes(write_tiff(samples[[band]]), make_spec([(0, 65_535)], size=16, resize=20))[0]
        for band in range(6)
    ]
    assert pixels.shape == (6, 16, 16)
    assert np.array_equal(pixels, np.stack(alone))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_bands_are_turned_upright(orientation):
    samples = make_samples((5, 3, 4), bits=8)
    data = make_tiff(samples, extratags=[(274, 3, 1, orientation, True)])
    bands = decode_bands(data, ranges=[(0, 255)] * 5)
    for plane, own in zip(bands.planes, samples, strict=True):
        image = Image.fromarray(own)
        image.getexif()[274] = orientation
        assert np.array_equal(np.asarray(plane), np.asarray(ImageOps.exif_transpose(image)))


@pytest.mark.parametrize("bits", [8, 16])
def test_a_gray_png_is_one_band(bits):
    samples = make_samples((1, 5, 7), bits=bits)
    buffer = io.BytesIO()
    Image.fromarray(samples[0]).save(buffer, "PNG")
    assert np.array_equal(read_bands(buffer.getvalue(), wanted=1)[0], samples)


def test_sixteen_bits_of_a_picture_keep_the_high_byte_and_of_a_band_the_range():
    data = write_tiff(np.array([[[0, 2000], [3000, 4095]]], np.uint16))
    assert np.asarray(decode_image(data, channels=1)).tolist() == [[0, 7], [11, 15]]
    assert pixels_from_bytes(data, make_spec([(0, 4095)])).tolist() == [[[0, 125], [187, 255]]]


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", EmptyImageError, "empty"),
        (b"no image", UnsupportedImageError, "no TIFF; this model takes a TIFF of 2 bands"),
        (write_tiff(TWO[:1]), UnsupportedImageError, "has 1 bands; this model takes 2"),
        (write_tiff(np.zeros((2, 1000, 1000), np.uint8)), ImageTooLargeError, "1000 x 1000 pixels of 2 bands"),
        (write_tiff(TWO)[:10], UndecodableImageError, "broken"),
        (make_tiff(TWO.astype(np.float32)), UnsupportedImageError, "float samples of 32 bits; send unsigned"),
        (make_tiff(TWO.astype(np.int16)), UnsupportedImageError, "signed samples of 16 bits; send unsigned"),
        (make_tiff(TWO, bigtiff=True), UnsupportedImageError, "no TIFF"),
    ],
)
def test_bad_bands_are_refused_with_what_is_wanted(data, error, says):
    with pytest.raises(error, match=says):
        decode_bands(data, ranges=[(0, 255)] * 2, max_pixels=MAX_SAMPLES)


def test_a_picture_model_says_what_takes_a_tiff_of_bands():
    with pytest.raises(UnsupportedImageError, match="has 6 bands of 16 bits, which make no picture; a model that was"):
        decode_image(write_tiff(make_samples((6, 4, 4))), channels=3)


def test_more_strips_than_the_size_makes_or_than_anyone_writes_are_refused():
    data = make_tiff(np.zeros((2, MAX_BLOCKS + 1, 1), np.uint8), rowsperstrip=1)
    with pytest.raises(ImageTooLargeError, match="strips or tiles"):
        read_bands(data)
    fewer = with_tag(make_tiff(np.zeros((2, 40, 1), np.uint8), rowsperstrip=10), 257, 20)
    with pytest.raises(UndecodableImageError, match="4 offsets and 4 sizes of strips or tiles; its size makes 2"):
        read_bands(fewer)


def test_a_tile_far_larger_than_the_picture_is_refused_before_memory_is_spent(little_memory):
    data = make_tiff(np.zeros((1, 16, 16), np.uint8), tile=(2048, 2048), compression="zlib")
    assert decode_image(data, channels=1).size == (16, 16)
    assert read_bands(data)[0].shape == (1, 16, 16)
    for decode in (read_bands, lambda each: decode_image(each, channels=1)):
        with pytest.raises(UndecodableImageError, match="tiles of 65520 x 2048 pixels; at most"):
            decode(with_tag(data, 322, 65_520))


@pytest.mark.parametrize(("tag", "kind", "value"), [(322, 2, 65), (323, 7, 16), (324, 9, 2**32 - 1), (325, 9, 2**31)])
def test_tiles_that_are_no_unsigned_numbers_are_refused(tag, kind, value):
    tiled = make_tiff(np.zeros((1, 16, 16), np.uint8), tile=(16, 16), compression="zlib")
    data = with_tag(tiled, tag, value, kind=kind)
    for decode in (read_bands, lambda each: decode_image(each, channels=1)):
        with pytest.raises(UndecodableImageError, match="broken"):
            decode(data)


@pytest.mark.parametrize(
    ("samples", "tag", "value", "reason"),
    [
        (make_samples((1, 4, 4), bits=8), 258, 12, "12-bit samples"),
        (make_samples((1, 4, 4), bits=8).astype("i1"), 258, 8, "signed samples"),
        (make_samples((1, 4, 4)).astype("i2"), 258, 16, "signed samples"),
        (make_samples((1, 4, 4)), 262, 0, "16-bit samples of which 0 is white"),
    ],
    ids=["12 bits", "signed 8 bits", "signed 16 bits", "negative"],
)
def test_what_pillow_would_show_wrong_is_refused_as_a_picture(samples, tag, value, reason):
    with pytest.raises(UnsupportedImageError, match=f"the TIFF has {reason}; save it with unsigned ones of 8 or 16"):
        decode_image(with_tag(make_tiff(samples), tag, value, kind=3), channels=1)


def test_a_strip_that_unpacks_to_more_than_the_header_announces_costs_no_memory(little_memory):
    packer = zlib.compressobj()
    bomb = b"".join([*(packer.compress(bytes(60_000_000)) for _ in range(10)), packer.flush()])
    small = make_tiff(np.zeros((1, 3, 3), np.uint8), compression="zlib")
    check(with_tag(with_tag(small + bomb, 273, len(small)), 279, len(bomb)))


def test_the_header_tells_how_many_samples_are_to_come():
    data = write_tiff(make_samples((13, 4, 5)))
    assert count_samples(data) == peek_pixels(data) == 13 * 4 * 5
    assert count_samples(b"II*\x00") == count_samples(b"") == 0
    assert is_no_picture(data)
    assert not is_no_picture(write_tiff(TWO[:1]))
    assert not is_no_picture(b"II*\x00")


def test_perturbations_change_each_band_and_turn_all_alike():
    samples = np.repeat(make_samples((1, 20, 20), bits=8), 5, axis=0)
    bands = decode_bands(write_tiff(samples), ranges=[(0, 255)] * 5)
    turned = Perturbation(rotate=40)(bands, 7)
    noisy = Perturbation(noise=20)(bands, 7)
    assert isinstance(turned, Bands)
    assert isinstance(noisy, Bands)
    assert len({plane.tobytes() for plane in turned.planes}) == 1
    assert turned.planes[0].tobytes() != bands.planes[0].tobytes()
    assert len({plane.tobytes() for plane in noisy.planes}) == 5


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"channels": 2, "ranges": None}, "channels is 2 and ranges is missing; expected a range for each band"),
        ({"ranges": ((0, 9),)}, "ranges has 1 ranges; expected 2, one a channel"),
        ({"ranges": ((0, 9), (9, 9))}, "ranges has 9 to 9; expected the lower sample first"),
        ({"ranges": ((0, 9), (0, 65_536))}, "less than or equal to 65535"),
        ({"channels": 65}, "less than or equal to 64"),
    ],
)
def test_a_spec_whose_ranges_do_not_fit_is_refused(fields, says, tmp_path):
    path = tmp_path / "spec.yaml"
    good = make_spec([(0, 9), (1, 4095)])
    path.write_text(dump_spec(good))
    assert read_spec(path) == good
    path.write_text(dump_spec(good.model_copy(update=fields)))
    with pytest.raises(SpecError, match=says):
        read_spec(path)


def check(data: bytes) -> bool:
    """Decodes, or is refused with a reason, in little time; returns whether it was decoded."""
    start = time.thread_time()
    try:
        samples, orientation = read_bands(data, max_pixels=MAX_SAMPLES)
    except ImageError as err:
        assert str(err)
        return False
    finally:
        assert time.thread_time() - start < 3
    assert samples.ndim == 3
    assert samples.size <= MAX_SAMPLES
    assert orientation in range(1, 9)
    return True


SEEDS = [
    make_tiff(make_samples((bands, 20, 30), bits=bits), **options)
    for bands, bits in ((1, 16), (5, 8), (13, 16))
    for options in (
        {},
        {"rowsperstrip": 3, "byteorder": ">"},
        {"tile": (16, 16), "compression": "zlib", "predictor": True},
        {"planarconfig": "separate", "compression": "zlib"},
    )
]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], database=None)
@given(data=st.data())
def test_any_mutation_is_read_or_refused_with_a_reason(data, little_memory):
    content = bytearray(data.draw(st.sampled_from(SEEDS)))
    for _ in range(data.draw(st.integers(1, 6))):
        # Mostly in the directory, which tifffile puts at the front.
        place = data.draw(st.integers(0, min(len(content), 300) - 1) | st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255) | st.sampled_from((0, 1, 2, 127, 255)))
    end = data.draw(st.integers(0, len(content)) | st.just(len(content)))
    check(bytes(content[:end]))


def test_the_seeds_of_the_mutations_are_read():
    assert all(map(check, SEEDS))
