"""From untrusted bytes to an upright 8-bit picture with the channels that the network wants.

Every image of the project, in training as in serving, enters through `decode_image`. It never trusts the bytes: the
format must be one of FORMATS, and the pixel count is checked on the header, before memory is spent.
"""

import contextlib
import io
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from model.errors import EmptyImageError, ImageTooLargeError, UndecodableImageError, UnsupportedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
MAX_PIXELS = 50_000_000  # 150 MB as RGB; a current phone's photograph has 12 to 50 million

_MODE_BY_CHANNELS = {1: "L", 3: "RGB", 4: "RGBA"}
_MODES_16_BIT = {"I;16", "I;16B", "I;16L", "I;16N"}
_MODES_32_BIT = {"I", "F"}
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"GIF8", b"II*\x00", b"MM\x00*")


def decode_image(data: bytes, *, channels: int, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Decodes one image.

    EXIF orientation is applied. Of an animation or a multi-page TIFF the first frame counts. Alpha is blended over
    white unless the network takes it (channels 4). Of 16-bit samples the high byte counts, as libpng's strip-16 does.

    Args:
        data: the file's bytes, of one of FORMATS.
        channels: 1, 3 or 4, for an image of mode L, RGB or RGBA.
        max_pixels: the most pixels (width times height) to decode.

    Raises:
        EmptyImageError: no bytes.
        ImageTooLargeError: the header announces more than max_pixels.
        UnsupportedImageError: not one of FORMATS, or samples without a defined 8-bit meaning (32 bits, signed 16).
        UndecodableImageError: truncated or broken.
    """
    if not data:
        raise EmptyImageError("the image is empty; send the bytes of one image file")
    with warnings.catch_warnings():
        # Whoever sends an odd image should not write into our log. Threads can undo each other's filter: no harm done.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        image = _open(data, max_pixels=max_pixels)
        width, height = image.size
        if width * height > max_pixels:
            raise ImageTooLargeError(f"the image has {width} x {height} pixels; at most {max_pixels} are accepted")
        try:
            image.load()
        except Exception as err:  # hostile bytes make Pillow's decoders raise anything: OSError, struct.error, …
            raise UndecodableImageError(f"the {image.format} image is truncated or broken: {err}") from err
        _turn_upright(image)
        return _convert(image, mode=_MODE_BY_CHANNELS[channels])


def _open(data: bytes, *, max_pixels: int) -> Image.Image:
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as err:
        raise ImageTooLargeError(f"the image has too many pixels; at most {max_pixels} are accepted") from err
    except UnidentifiedImageError as err:
        if data.startswith(_SIGNATURES):
            raise UndecodableImageError("the image's header is truncated or broken") from err
        raise UnsupportedImageError(f"the bytes are not an image; accepted are {', '.join(FORMATS)}") from err
    except Exception as err:  # as in load: a header is as hostile as the rest
        raise UndecodableImageError(f"the image's header is broken: {err}") from err


def _turn_upright(image: Image.Image) -> None:
    # A broken EXIF block says nothing about the pixels: show them as they lie, as viewers do.
    with contextlib.suppress(Exception):
        ImageOps.exif_transpose(image, in_place=True)


def _convert(image: Image.Image, *, mode: str) -> Image.Image:
    if image.mode in _MODES_32_BIT:
        raise UnsupportedImageError("the image has 32-bit samples, whose range is not defined; send 8 or 16 bits")
    if image.mode in _MODES_16_BIT:
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    try:
        if mode != "RGBA" and image.has_transparency_data:
            layer = image.convert("RGBA")
            image = Image.new("RGBA", layer.size, "white")
            image.alpha_composite(layer)
        return image.convert(mode)
    except ValueError as err:
        raise UnsupportedImageError(f"an image of mode {image.mode} cannot be converted to {mode}") from err
