"""From untrusted bytes to an upright 8-bit picture with the channels that the network wants.

Every picture of the project, in training as in serving, enters through `decode_picture`; bands have model.bands. It
never trusts the bytes: the format must be one of FORMATS; bytes, pixels (as the header has them) and what else can cost
time or memory are counted before any is spent (model.decode_limits).
"""

import io
import logging
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from model.bands import count_samples
from model.decode_limits import MAX_BYTES, MAX_PIXELS, check_file, check_opened
from model.errors import EmptyImageError, ImageTooLargeError, UndecodableImageError, UnsupportedImageError
from model.png import drop_own_names
from model.tiff import is_tiff, read_tiff_header

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")

_MODE_BY_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_MODES_16_BIT = {"I;16", "I;16B", "I;16L", "I;16N"}
_MODES_32_BIT = {"I", "F"}
_PALETTE_MODES = {"P", "PA"}
_GRAY_BITS = {"L;2": 2, "L;4": 4}  # by what Pillow calls the pixels of a PNG's rows
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")

logger = logging.getLogger(__name__)
logging.getLogger("PIL").setLevel(logging.CRITICAL)  # whoever sends an odd image should not write into our log

_BITS, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # TIFF's tags
_WHITE_IS_ZERO, _SIGNED = 0, 2
_ORIENTATION = 274  # EXIF's tag; its values 1 to 8 say how the picture lies
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED, _FROM_RIGHT, _FROM_BOTTOM = {5, 6, 7, 8}, {2, 3, 6, 7}, {3, 4, 7, 8}


@dataclass(frozen=True)
class Picture:
    """A decoded image, and which part of it the file's pixels fill.

    Attributes:
        image: upright, of mode L, RGB or RGBA.
        box: left, top, right and bottom, in its pixels. At a reduced scale the last column and row may be filled in
            part only: 601 pixels at half their size are 301, of which the file fills 300.5.
    """

    image: Image.Image
    box: tuple[float, float, float, float]


def decode_image(
    data: bytes, *, channels: int, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> Image.Image:
    """Decodes one image at its full size; arguments and errors as in `decode_picture`."""
    return decode_picture(data, channels=channels, max_pixels=max_pixels, max_bytes=max_bytes).image


def decode_picture(
    data: bytes,
    *,
    channels: int,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
    enough_side: int | None = None,
) -> Picture:
    """Decodes one image.

    EXIF orientation is applied. Of an animation or a multi-page TIFF the first frame counts. Alpha is blended over
    white unless the network takes it (channels 4). Of 16-bit samples the high byte counts, as libpng's strip-16 does.

    Args:
        data: the file's bytes, of one of FORMATS.
        channels: 1, 3 or 4, for an image of mode L, RGB or RGBA.
        max_pixels: the most pixels (width times height) to decode.
        max_bytes: the most bytes of the file.
        enough_side: a JPEG may come out at a half, a quarter or an eighth of its size, as long as its shorter side
            keeps this many pixels; None for always all of it.

    Raises:
        EmptyImageError: no bytes.
        ImageTooLargeError: more than max_bytes, or the header announces more than max_pixels.
        UnsupportedImageError: not one of FORMATS, or samples without a defined 8-bit meaning (12 or 32 bits, signed).
        UndecodableImageError: truncated, broken, or of so many parts that it would take too long.
    """
    with warnings.catch_warnings():
        # As for the log. Threads can undo each other's filter: no harm done.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        image = open_picture(data, max_pixels=max_pixels, max_bytes=max_bytes)
        if isinstance(image, PngImageFile):
            _scale_color_key(image)
        reduced = image.draft(None, (enough_side, enough_side)) if enough_side else None  # only JPEG heeds it
        try:
            image.load()
        except MemoryError:  # the server's trouble, not the image's: its pixels were counted
            raise
        except Exception as err:  # hostile bytes make Pillow's decoders raise anything: OSError, struct.error, …
            raise UndecodableImageError(f"the {image.format} image is truncated or broken: {err}") from err
        filled, orientation = reduced[1][2:] if reduced else image.size, _read_orientation(image)
        box = _find_box(filled, size=image.size, orientation=orientation)
        # Not Pillow's exif_transpose: it also writes the EXIF block anew, which may fail once the pixels are turned.
        if orientation in _TURNS:
            image = image.transpose(_TURNS[orientation])
        return Picture(_convert(image, mode=_MODE_BY_CHANNELS[channels]), box)


def open_picture(data: bytes, *, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES) -> Image.Image:
    """Reads an image's header and checks it against all limits; its pixels are not decoded.

    Arguments and errors are those of `decode_picture`.
    """
    if not data:
        raise EmptyImageError("the image is empty; send the bytes of one image file")
    if len(data) > max_bytes:
        raise ImageTooLargeError(f"the image has {len(data)} bytes; at most {max_bytes} are accepted")
    check_file(data)
    image = _open(data, max_pixels=max_pixels)
    width, height = image.size
    if width * height > max_pixels:
        raise ImageTooLargeError(f"the image has {width} x {height} pixels; at most {max_pixels} are accepted")
    check_opened(image, data)
    if isinstance(image, TiffImageFile):
        _check_samples(image)
    return image


def peek_pixels(data: bytes) -> int:
    """Returns how many pixels the header announces, of a TIFF how many samples; 0 where it cannot be read.

    Why it cannot, decoding will say.
    """
    if samples := count_samples(data):
        return samples
    try:
        check_file(data)  # before Pillow sees it, as it unpacks colour profiles on its way to the size
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            width, height = Image.open(io.BytesIO(data), formats=FORMATS).size
    except Exception:  # as in _open
        return 0
    return int(width * height)


def _open(data: bytes, *, max_pixels: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(drop_own_names(data)), formats=FORMATS)
    except Image.DecompressionBombError as err:
        raise ImageTooLargeError(f"the image has too many pixels; at most {max_pixels} are accepted") from err
    except UnidentifiedImageError as err:
        if is_tiff(data):
            header = read_tiff_header(data)
            raise UnsupportedImageError(
                f"the TIFF has {header.samples} bands of {header.bits} bits, which make no picture; a model that was "
                f"trained on {header.samples} bands takes it"
            ) from err
        if data.startswith(_SIGNATURES):
            raise UndecodableImageError("the image's header is truncated or broken") from err
        raise UnsupportedImageError(f"the bytes are not an image; accepted are {', '.join(FORMATS)}") from err
    except MemoryError:
        raise
    except Exception as err:  # as in load: a header is as hostile as the rest
        raise UndecodableImageError(f"the image's header is broken: {err}") from err


def _check_samples(image: TiffImageFile) -> None:
    """Refuses what Pillow opens and shows as something else: nearly black, with its signs lost, or as a negative."""
    tags, text = image.tag_v2, "save it with unsigned ones of 8 or 16 bits, of which 0 is black"
    bits = max(tags.get(_BITS, (1,)))
    if bits == 12:
        raise UnsupportedImageError(f"the TIFF has 12-bit samples; {text}")
    if bits <= 16 and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        raise UnsupportedImageError(f"the TIFF has signed samples; {text}")
    if image.mode in _MODES_16_BIT and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        raise UnsupportedImageError(f"the TIFF has 16-bit samples of which 0 is white; {text}")


def _scale_color_key(image: PngImageFile) -> None:
    """Brings the transparent colour, which Pillow leaves as it stands in the file, to the 8 bits of the pixels."""
    key, packing = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if isinstance(key, int) and packing in _GRAY_BITS:
        largest = 2 ** _GRAY_BITS[packing] - 1
        image.info["transparency"] = (key & largest) * 255 // largest
    elif isinstance(key, tuple) and packing == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _read_orientation(image: Image.Image) -> int:
    """Returns how an image lies, 1 to 8; 1 where its EXIF block does not say."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
        return int(orientation) if orientation in range(1, 9) else 1
    except MemoryError:
        raise
    except Exception as err:  # a broken EXIF block says nothing about the pixels: show them as they lie, as viewers do
        logger.debug("the EXIF block of the %s image is broken: %s", image.format, err)
        return 1


def _find_box(
    filled: tuple[float, float], *, size: tuple[int, int], orientation: int
) -> tuple[float, float, float, float]:
    """Returns where the pixels that are filled lie after the picture was turned upright.

    Args:
        filled: width and height of what is filled, from the left and the top, before.
        size: of the picture, before.
        orientation: of EXIF.
    """
    (width, height), (slack_x, slack_y) = filled, (size[0] - filled[0], size[1] - filled[1])
    if orientation in _TURNED:
        width, height, slack_x, slack_y = height, width, slack_y, slack_x
    left = slack_x if orientation in _FROM_RIGHT else 0.0
    top = slack_y if orientation in _FROM_BOTTOM else 0.0
    return left, top, left + width, top + height


def _convert(image: Image.Image, *, mode: str) -> Image.Image:
    if image.mode in _MODES_32_BIT:
        raise UnsupportedImageError("the image has 32-bit samples, whose range is not defined; send 8 or 16 bits")
    if image.mode in _MODES_16_BIT:
        samples, key = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray((samples >> 8).astype(np.uint8))
        if isinstance(key, int):  # compared with all 16 bits
            image.putalpha(Image.fromarray((samples != key).astype(np.uint8) * 255))
    if image.mode in _PALETTE_MODES and image.palette is None:
        raise UndecodableImageError("the image has colours of a palette, and none before its pixels")
    try:
        if mode != "RGBA" and image.has_transparency_data:
            layer = image if image.mode == "RGBA" else image.convert("RGBA")
            image = Image.new("RGB", layer.size, "white")
            image.paste(layer, mask=layer)
        return image if image.mode == mode else image.convert(mode)
    except ValueError as err:
        raise UnsupportedImageError(f"an image of mode {image.mode} cannot be converted to {mode}") from err
    except MemoryError:
        raise
    except Exception as err:  # as in load: what the file says beside its pixels is as hostile
        raise UndecodableImageError(f"the image is broken ({type(err).__name__})") from err
