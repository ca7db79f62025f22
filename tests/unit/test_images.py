import io
import random
import struct
import tracemalloc
import warnings
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from model.errors import (
    EmptyImageError,
    ImageError,
    ImageTooLargeError,
    UndecodableImageError,
    UnsupportedImageError,
)
from model.images import FORMATS, decode_image, decode_picture

RED, HALF_RED_ON_WHITE = (255, 0, 0), (255, 127, 127)
ORIENTATION = 274  # EXIF tag


def make_picture(width: int = 24, height: int = 16) -> Image.Image:
    """A smooth picture without symmetry, so that lossy formats keep it and each orientation differs."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = (columns * 255 // width, rows * 255 // height, (rows + columns) * 255 // (width + height))
    return Image.fromarray(np.stack(channels, axis=2).astype(np.uint8))


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of these chunks, each a kind and its content."""
    parts = (
        struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return (
        b"\x89PNG\r\n\x1a\n" + b"".join(parts) + struct.pack("!I", 0) + b"IEND" + struct.pack("!I", zlib.crc32(b"IEND"))
    )


def png_of_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that announces any size."""
    header = struct.pack("!IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return png_of((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))))


def pixel_of(image: Image.Image) -> tuple[int, ...]:
    value = image.getpixel((image.width // 2, image.height // 2))
    return value if isinstance(value, tuple) else (value,)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_comes_out_in_the_wanted_mode_with_its_pixels(kind, channels, mode, encode):
    picture = make_picture()
    image = decode_image(encode(picture, kind), channels=channels)
    assert (image.mode, image.size) == (mode, picture.size)
    difference = np.abs(np.asarray(image, dtype=int) - np.asarray(picture.convert(mode), dtype=int))
    assert difference.mean() <= (0 if kind in {"PNG", "BMP", "TIFF"} else 8)


@pytest.mark.parametrize(
    ("image", "gray", "rgb", "rgba"),
    [
        (Image.new("1", (4, 4), 1), 255, (255,) * 3, (255,) * 4),
        (Image.new("L", (4, 4), 100), 100, (100,) * 3, (100, 100, 100, 255)),
        (Image.new("LA", (4, 4), (0, 128)), 127, (127,) * 3, (0, 0, 0, 128)),
        (Image.new("P", (4, 4), 0), 0, (0,) * 3, (0, 0, 0, 255)),
        (Image.new("RGB", (4, 4), RED), 76, RED, (*RED, 255)),
        (Image.new("RGBA", (4, 4), (*RED, 128)), 165, HALF_RED_ON_WHITE, (*RED, 128)),
        (Image.new("RGBA", (4, 4), (*RED, 0)), 255, (255,) * 3, (*RED, 0)),
        (Image.fromarray(np.full((4, 4), 0x1234, np.uint16)), 0x12, (0x12,) * 3, (0x12, 0x12, 0x12, 255)),
    ],
    ids=["1", "L", "LA", "P", "RGB", "RGBA", "RGBA-clear", "I;16"],
)
def test_every_png_mode_has_one_meaning_a_channel_count(image, gray, rgb, rgba, encode):
    data = encode(image, "PNG")
    for channels, wanted in ((1, (gray,)), (3, rgb), (4, rgba)):
        assert pixel_of(decode_image(data, channels=channels)) == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize(("transparency", "wanted"), [(0, (255,) * 3), (b"\x80", HALF_RED_ON_WHITE), (None, RED)])
def test_transparent_palette_colors_are_blended_over_white(transparency, wanted, encode):
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, 0, 255, 0])
    options = {} if transparency is None else {"transparency": transparency}
    assert pixel_of(decode_image(encode(image, "PNG", **options), channels=3)) == pytest.approx(wanted, abs=1)


@pytest.mark.parametrize(("mode", "color"), [("L", 77), ("RGB", RED)])
def test_a_color_key_is_blended_over_white(mode, color, encode):
    data = encode(Image.new(mode, (4, 4), color), "PNG", transparency=color)
    assert pixel_of(decode_image(data, channels=3)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("bits", "color", "key", "row", "alphas"),
    [
        (1, 0, "0001", "50", [255, 0, 255, 0]),
        (2, 0, "0001", "1b", [255, 0, 255, 255]),
        (4, 0, "0007", "017f", [255, 255, 0, 255]),
        (8, 0, "0040", "004041ff", [255, 0, 255, 255]),
        (16, 0, "4000", "0000 4000 4001 8000", [255, 0, 255, 255]),
        (16, 2, "123456789abc", "123456789abc 123356789abc 133456789abc 000000000000", [0, 0, 255, 255]),
    ],
    ids=["1", "2", "4", "8", "16", "RGB of 16, by its high bytes"],
)
def test_a_color_key_has_the_bits_of_its_file(bits, color, key, row, alphas):
    header, pixels = struct.pack("!IIBBBBB", 4, 1, bits, color, 0, 0, 0), b"\x00" + bytes.fromhex(row)
    data = png_of((b"IHDR", header), (b"tRNS", bytes.fromhex(key)), (b"IDAT", zlib.compress(pixels)))
    assert np.asarray(decode_image(data, channels=4))[0, :, 3].tolist() == alphas
    over_white = np.asarray(decode_image(data, channels=1))[0]
    assert [int(value) == 255 for value, alpha in zip(over_white, alphas, strict=True) if not alpha] == [
        True
    ] * alphas.count(0)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_palette_colors_without_a_palette_are_broken(channels):
    header, pixels = struct.pack("!IIBBBBB", 4, 1, 8, 3, 0, 0, 0), zlib.compress(bytes(5))
    for late in ((), ((b"PLTE", bytes(6)),)):
        with pytest.raises(UndecodableImageError, match="colours of a palette, and none before its pixels"):
            decode_image(png_of((b"IHDR", header), (b"IDAT", pixels), *late), channels=channels)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_text_about_transparency_is_no_color_key(mode, encode):
    info = PngInfo()
    info.add_text("transparency", "none")
    data = encode(Image.new("RGB", (4, 4), "white").convert(mode), "PNG", pnginfo=info)
    for channels in (1, 3, 4):
        assert pixel_of(decode_image(data, channels=channels)) == (255,) * channels


@pytest.mark.parametrize("kind", ["tEXt", "zTXt", "iTXt"])
def test_a_text_of_any_name_says_nothing_about_pixels(kind, encode):
    """Pillow keeps texts under their names beside what it reads from other chunks, and acts on both."""
    names = ["Comment", *Image.open(io.BytesIO(encode(make_picture(), "PNG", dpi=(72, 72)))).info]
    names += ["interlace", "bbox", "transparency", "default_image", "blend", "disposal", "duration", "loop"]
    key = make_picture().getpixel((3, 3))
    for options in ({}, {"transparency": key}, {"save_all": True, "append_images": [Image.new("RGB", (24, 16), RED)]}):
        data = encode(make_picture(), "PNG", **options)
        wanted = decode_image(data, channels=4).tobytes()
        for name in names:
            text = {"tEXt": b"none", "zTXt": b"\0" + zlib.compress(b"none"), "iTXt": b"\0\0\0\0none"}[kind]
            chunk = png_of((kind.encode(), name.encode() + b"\0" + text))[8:-12]
            for place in (33, data.index(b"IDAT") - 4, len(data) - 12):
                assert decode_image(data[:place] + chunk + data[place:], channels=4).tobytes() == wanted, name


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_cmyk_jpeg_shows_its_colors(channels, encode):
    data = encode(Image.new("RGB", (16, 16), RED).convert("CMYK"), "JPEG", quality=95)
    wanted = {1: (76,), 3: RED, 4: (*RED, 255)}[channels]
    assert pixel_of(decode_image(data, channels=channels)) == pytest.approx(wanted, abs=4)


@pytest.mark.parametrize("byte_order", ["<", ">"])
def test_16_bit_tiff_keeps_its_high_byte(byte_order, encode):
    samples = np.array([[0, 0x00FF, 0x0100, 0xFFFF]], dtype=byte_order + "u2")
    mode = "I;16" if byte_order == "<" else "I;16B"
    data = encode(Image.frombytes(mode, (4, 1), samples.tobytes()), "TIFF")
    assert np.asarray(decode_image(data, channels=1)).tolist() == [[0, 0, 1, 255]]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_32_bit_samples_are_refused(dtype, encode):
    with pytest.raises(UnsupportedImageError, match="32-bit samples"):
        decode_image(encode(np.full((4, 4), 7, dtype), "TIFF"), channels=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind, orientation, encode):
    upright = make_picture()
    exif = Image.Exif()
    exif[ORIENTATION] = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}[orientation]  # the inverse turn
    lying = upright.copy()
    lying.getexif()[ORIENTATION] = exif[ORIENTATION]
    lying = ImageOps.exif_transpose(lying)
    exif[ORIENTATION] = orientation
    image = decode_image(encode(lying, kind, exif=exif), channels=3)
    assert image.size == upright.size
    assert np.abs(np.asarray(image, dtype=int) - np.asarray(upright, dtype=int)).mean() < 8


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_broken_exif_block_does_not_refuse_the_image(kind, encode):
    broken = b"Exif\x00\x00MM\x00*\x00\x00\x00\x08\xff\xff\x01\x12garbage"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of it while it writes the file
        data = encode(make_picture(), kind, exif=broken)
    assert decode_image(data, channels=3).size == (24, 16)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_exif_block_that_cannot_be_written_anew_still_turns_the_image(kind, encode):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[282] = 72.0
    unwritable = exif.tobytes().replace(b"\x01\x1a\x00\x05", b"\x01\x1a\x00\x01")  # the resolution as one byte
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        data = encode(make_picture(), kind, exif=unwritable)
    picture, wanted = decode_picture(data, channels=3), make_picture().transpose(Image.Transpose.ROTATE_270)
    assert picture.image.size == picture.box[2:] == wanted.size
    assert np.abs(np.asarray(picture.image, dtype=int) - np.asarray(wanted, dtype=int)).mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_the_first_frame_of_an_animation_counts(kind, encode):
    frames = [Image.new("RGB", (16, 16), color) for color in (RED, (0, 255, 0), (0, 0, 255))]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
    assert pixel_of(decode_image(data, channels=3)) == pytest.approx(RED, abs=4)


def test_no_bytes_are_an_error_of_their_own():
    with pytest.raises(EmptyImageError, match="the image is empty"):
        decode_image(b"", channels=3)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_a_truncated_image_is_refused_and_not_shown_half(kind, part, encode):
    data = encode(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8), kind)
    with pytest.raises(UndecodableImageError, match="broken"):
        decode_image(data[: int(len(data) * part)], channels=3)


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("picture.png", "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [b"hello", b"\x00" * 50, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0", zip_bytes()],
    ids=["text", "zeros", "svg", "eps", "zip"],
)
def test_what_is_no_image_is_refused_with_the_formats_that_are(data):
    with pytest.raises(UnsupportedImageError, match="accepted are JPEG, PNG, WEBP"):
        decode_image(data, channels=3)


def test_a_format_that_pillow_knows_and_we_do_not_is_refused(encode):
    with pytest.raises(UnsupportedImageError):
        decode_image(encode(make_picture(), "PPM"), channels=3)


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 10_000), (7_072, 7_072)])
def test_a_decompression_bomb_is_refused_before_memory_is_spent(size):
    tracemalloc.start()
    try:
        with pytest.raises(ImageTooLargeError, match="at most 50000000 are accepted"):
            decode_image(png_of_header(*size), channels=3)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_pixel_limit_can_be_lowered_and_its_value_is_accepted(encode):
    data = encode(make_picture(24, 16), "PNG")
    assert decode_image(data, channels=3, max_pixels=24 * 16).size == (24, 16)
    with pytest.raises(ImageTooLargeError, match="24 x 16 pixels"):
        decode_image(data, channels=3, max_pixels=24 * 16 - 1)


def test_pillow_warnings_neither_refuse_an_image_nor_reach_the_log(encode, recwarn):
    tags = {ORIENTATION: 6, 40_000: "x" * 20}
    exif = Image.Exif()
    exif.update(tags)
    data = encode(make_picture(), "JPEG", exif=exif)
    cut = data.replace(
        b"\x9c\x40\x00\x02\x00\x00\x00\x15", b"\x9c\x40\x00\x02\x00\x0f\x00\x15"
    )  # a tag beyond the file
    assert cut != data
    warnings.simplefilter("error")
    assert decode_image(cut, channels=3).size == (16, 24)  # the tag before it still turns the picture
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_mutated_bytes_never_raise_anything_but_image_errors(kind, encode):
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    valid, dice = encode(make_picture(), kind, exif=exif), random.Random(0)
    refused = 0
    for _ in range(300):
        data = bytearray(valid)
        for _ in range(dice.choice((1, 2, 8))):
            data[dice.randrange(dice.choice((100, len(data))))] = dice.randrange(256)
        del data[dice.choice((len(data), dice.randrange(len(data)))) :]
        try:
            decode_image(bytes(data), channels=dice.choice((1, 3, 4)))
        except ImageError:
            refused += 1
    assert 0 < refused < 300
