"""Small files that would cost much: each is refused, and what honest encoders write is not."""

import io
import resource
import struct
import sys
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from model.decode_limits import MAX_CHUNKS, MAX_EXIF_SEGMENTS, MAX_RUN_LENGTH_PIXELS, MAX_SCANS, MAX_SEGMENTS
from model.errors import ImageError, ImageTooLargeError, UndecodableImageError, UnsupportedImageError
from model.images import decode_image

SCAN = b"\xff\xda"
FRAMES = 10_000
Encode = Callable[..., bytes]


def segment(marker: int, payload: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack("!H", len(payload) + 2) + payload


def after_start(jpeg: bytes, inserted: bytes) -> bytes:
    return jpeg[:2] + inserted + jpeg[2:]


def with_scans(encode: Encode, count: int) -> bytes:
    """A progressive JPEG that repeats its last scan, of a few bytes, until it has this many."""
    jpeg = encode(Image.new("L", (64, 64)), "JPEG", progressive=True)
    last = jpeg[jpeg.rindex(SCAN) : -2]
    return jpeg[:-2] + last * (count - jpeg.count(SCAN)) + jpeg[-2:]


def chunk(kind: bytes, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload)) + kind + payload + struct.pack("!I", zlib.crc32(kind + payload))


def with_chunks(encode: Encode, inserted: bytes, *, before_pixels: bool = True) -> bytes:
    png = encode(Image.new("RGB", (16, 16)), "PNG")
    at = png.index(b"IDAT" if before_pixels else b"IEND") - 4
    return png[:at] + inserted + png[at:]


def run_length_bmp(width: int, height: int, body: bytes) -> bytes:
    offset = 54 + 1024
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + bytes(1024) + body


def tiff(tags: dict[int, tuple[int, int, int]], tail: bytes = b"") -> bytes:
    """A TIFF of one directory; tags give type, count and value, or the value's offset."""
    entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
    return b"II*\x00" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + tail


def gray_tiff(width: int, height: int, **fields: tuple[int, int, int]) -> dict[int, tuple[int, int, int]]:
    plain = {256: (4, 1, width), 257: (4, 1, height), 258: (3, 1, 8), 259: (3, 1, 1), 262: (3, 1, 1)}
    strips = {273: (4, 1, 400), 277: (3, 1, 1), 278: (4, 1, height), 279: (4, 1, min(width * height, 2**32 - 1))}
    return plain | strips | {int(tag.removeprefix("tag")): entry for tag, entry in fields.items()}


def test_more_bytes_than_allowed_are_refused_and_their_number_is_accepted(encode: Encode):
    data = encode(Image.new("RGB", (16, 16)), "PNG")
    assert decode_image(data, channels=3, max_bytes=len(data)).size == (16, 16)
    with pytest.raises(ImageTooLargeError, match=f"has {len(data)} bytes; at most {len(data) - 1} are accepted"):
        decode_image(data, channels=3, max_bytes=len(data) - 1)


def test_a_jpeg_of_many_scans_is_refused_at_the_limit(encode: Encode):
    assert decode_image(with_scans(encode, MAX_SCANS), channels=1).size == (64, 64)
    with pytest.raises(UndecodableImageError, match=f"more than {MAX_SCANS} scans"):
        decode_image(with_scans(encode, MAX_SCANS + 1), channels=1)


def test_scans_are_not_hidden_by_segments_between_them(encode: Encode):
    jpeg = with_scans(encode, MAX_SCANS + 1)
    hidden = jpeg.replace(SCAN, segment(0xFE, b"a comment with \xff\xd9 in it") + b"\xff\xff" + SCAN)
    with pytest.raises(UndecodableImageError, match="scans"):
        decode_image(hidden, channels=1)


def test_a_file_appended_to_a_jpeg_is_not_taken_for_its_scans(encode: Encode):
    jpeg = encode(Image.new("RGB", (64, 64)), "JPEG")  # as phones append a film, or a second picture
    assert decode_image(jpeg + SCAN * 1000, channels=3).size == (64, 64)
    assert decode_image(after_start(jpeg, segment(0xE1, SCAN * 1000)), channels=3).size == (64, 64)


def test_exif_in_more_segments_than_anyone_writes_is_refused_before_it_is_joined(encode: Encode):
    jpeg, part = encode(Image.new("RGB", (16, 16)), "JPEG"), segment(0xE1, b"Exif\x00\x00" + bytes(60_000))
    assert decode_image(after_start(jpeg, part * MAX_EXIF_SEGMENTS), channels=3).size == (16, 16)
    many = after_start(jpeg, part * (MAX_SEGMENTS - 50))
    start = time.thread_time()
    with pytest.raises(UndecodableImageError, match=f"has {MAX_SEGMENTS - 50} segments of EXIF; at most"):
        decode_image(many, channels=3)
    assert time.thread_time() - start < 1  # joined one by one they take more than ten


@pytest.mark.parametrize("stray", [b"\xff", b"\xff\x00", b"\x00", segment(0xFE, b""), segment(0xE1, b"Exif\x00\x00A")])
def test_a_jpeg_header_without_end_is_refused(stray, encode: Encode):
    jpeg = after_start(encode(Image.new("RGB", (16, 16)), "JPEG"), segment(0xFE, b"") + stray * 200_000)
    with pytest.raises(UndecodableImageError, match=f"more than {MAX_SEGMENTS} segments or 65536 stray bytes"):
        decode_image(jpeg, channels=3)


def test_a_large_colour_profile_is_accepted(encode: Encode):
    profile = b"".join(segment(0xE2, b"ICC_PROFILE\x00" + bytes((part, 255)) + bytes(60_000)) for part in range(1, 256))
    jpeg = after_start(encode(Image.new("RGB", (16, 16)), "JPEG"), profile)
    assert decode_image(jpeg, channels=3).size == (16, 16)


def test_a_jpeg_of_12_bits_is_refused_by_name(encode: Encode):
    jpeg = encode(Image.new("RGB", (16, 16)), "JPEG").replace(b"\xff\xc0\x00\x11\x08", b"\xff\xc1\x00\x11\x0c")
    with pytest.raises(UnsupportedImageError, match="12-bit samples; send 8 bits"):
        decode_image(jpeg, channels=3)


@pytest.mark.parametrize("before_pixels", [True, False])
@pytest.mark.parametrize("kind", [b"teSt", b"tEXt", b"IDAT"])
def test_a_png_of_tiny_chunks_is_refused(kind, before_pixels, encode: Encode):
    payload = b"key\x00x" if kind == b"tEXt" else b""
    data = with_chunks(encode, chunk(kind, payload) * (MAX_CHUNKS * 2), before_pixels=before_pixels)
    with pytest.raises(UndecodableImageError, match=f"too many chunks, the last of them {kind.decode()!r}"):
        decode_image(data, channels=3)


def test_a_png_of_as_many_chunks_as_allowed_is_accepted(encode: Encode):
    chunks = chunk(b"teSt") * (MAX_CHUNKS - 1) + chunk(b"iCCP", b"x\x00\x00" + zlib.compress(bytes(9)))  # and IHDR
    assert decode_image(with_chunks(encode, chunks), channels=3).size == (16, 16)
    with pytest.raises(UndecodableImageError, match="too many chunks"):
        decode_image(with_chunks(encode, chunks + chunk(b"teSt")), channels=3)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
@pytest.mark.parametrize("before_pixels", [True, False])
def test_a_png_chunk_that_unpacks_to_much_is_refused_before_memory_is_spent(kind, before_pixels, encode: Encode):
    packed = zlib.compress(bytes(200_000_000), 9)
    payload = {b"zTXt": b"a\x00\x00", b"iTXt": b"a\x00\x01\x00\x00\x00", b"iCCP": b"a\x00\x00"}[kind] + packed
    data = with_chunks(encode, chunk(kind, payload), before_pixels=before_pixels)
    tracemalloc.start()
    try:
        with pytest.raises(UndecodableImageError, match="too large"):
            decode_image(data, channels=3)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_second_colour_profile_is_refused(encode: Encode):
    profile = chunk(b"iCCP", b"a\x00\x00" + zlib.compress(bytes(1000)))
    with pytest.raises(UndecodableImageError, match="iCCP"):
        decode_image(with_chunks(encode, profile * 2), channels=3)


def test_a_run_length_coded_bmp_may_be_small():
    assert decode_image(run_length_bmp(4, 1, b"\x04\x07\x00\x01"), channels=1).size == (4, 1)
    with pytest.raises(ImageTooLargeError, match=f"at most {MAX_RUN_LENGTH_PIXELS} are accepted; save it uncompressed"):
        decode_image(run_length_bmp(MAX_RUN_LENGTH_PIXELS + 1, 1, b"\x01\x00\x00\x00"), channels=1)


def test_a_tiff_of_jpeg_strips_with_many_scans_is_refused(encode: Encode):
    def wrap(jpeg: bytes) -> bytes:
        tags = gray_tiff(64, 64, tag259=(3, 1, 7), tag279=(4, 1, len(jpeg)))
        return tiff(tags).ljust(400, b"\x00") + jpeg

    assert decode_image(wrap(with_scans(encode, MAX_SCANS)), channels=1).size == (64, 64)
    with pytest.raises(UndecodableImageError, match=f"{MAX_SCANS + 1} JPEG scans in 1 strips"):
        decode_image(wrap(with_scans(encode, MAX_SCANS + 1)), channels=1)


@pytest.mark.parametrize(
    ("tags", "tail"),
    [
        (gray_tiff(2**31, 2**30), b""),
        (gray_tiff(16, 16) | {40_000 + tag: (7, 1_000_000, 8) for tag in range(5000)}, bytes(1_000_000)),
        (gray_tiff(16, 16, tag273=(4, 2**31, 400), tag279=(4, 2**31, 400)), bytes(1000)),
        (gray_tiff(16, 16, tag277=(3, 1, 65_535)), bytes(1000)),
        (gray_tiff(16, 16, tag278=(4, 1, 2**32 - 1), tag279=(4, 1, 2**32 - 1)), bytes(100)),
        (gray_tiff(64, 64, tag259=(3, 1, 8), tag322=(4, 1, 131_072), tag323=(4, 1, 131_072)), bytes(1000)),
    ],
    ids=["size", "tags that overlap", "strips", "samples", "rows", "tiles"],
)
def test_a_tiff_whose_tags_lie_costs_no_memory(tags, tail):
    tracemalloc.start()
    try:
        try:
            decode_image(tiff(tags, tail), channels=1)
        except ImageError as err:
            assert str(err)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def make_frames(kind: str, encode: Encode, count: int) -> bytes:
    """An animation that repeats one frame of 16 x 16."""
    frame = Image.effect_noise((16, 16), 80).convert("RGB")
    data = encode(frame, kind, save_all=True, append_images=[frame.transpose(Image.Transpose.ROTATE_90)])
    if kind == "GIF":
        start = data.index(b"!\xf9")
        return data[:start] + data[start:-1] * count + data[-1:]
    if kind == "WEBP":
        start = data.index(b"ANMF")
        body = data[8:start] + data[start:] * (count // 2)
        return b"RIFF" + struct.pack("<I", len(body)) + body
    start = data.index(b"fcTL", data.index(b"IDAT")) - 4
    end = data.rindex(b"IEND") - 4
    animation = data.index(b"acTL") - 4
    head = data[:animation] + chunk(b"acTL", struct.pack("!II", count, 0)) + data[animation + 20 : start]
    return head + data[start:end] * (count - 1) + data[end:]


def make_pages(count: int) -> bytes:
    """A TIFF whose pages all show the same 16 x 16 pixels."""
    size = 2 + 9 * 12 + 4
    first = 8 + 16 * 16
    pages = []
    for number in range(count):
        tags = gray_tiff(16, 16, tag273=(4, 1, 8))
        following = first + size * (number + 1) if number < count - 1 else 0
        entries = b"".join(struct.pack("<HHII", tag, *entry) for tag, entry in sorted(tags.items()))
        pages.append(struct.pack("<H", len(tags)) + entries + struct.pack("<I", following))
    return b"II*\x00" + struct.pack("<I", first) + bytes(16 * 16) + b"".join(pages)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_ten_thousand_frames_cost_as_much_as_one(kind, encode: Encode):
    data = make_pages(FRAMES) if kind == "TIFF" else make_frames(kind, encode, FRAMES)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames >= FRAMES - 1
    times = []
    for _ in range(3):
        start = time.thread_time()
        assert decode_image(data, channels=3).size == (16, 16)
        times.append(time.thread_time() - start)
    assert min(times) < 0.25  # decoding all of them takes seconds


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the address space of a process")
def test_a_lack_of_memory_is_not_blamed_on_the_image(encode: Encode):
    data = encode(Image.new("L", (20_000, 2_000)), "PNG")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 20_000_000, limits[1]))
    try:
        with pytest.raises(MemoryError):
            decode_image(data, channels=3)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
