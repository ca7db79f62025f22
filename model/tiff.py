"""A TIFF as numbers: any number of samples a pixel, of 8 or 16 bits, whatever they mean.

Pillow opens pictures: a TIFF of 13 bands is none, and of 16-bit colours it keeps the high byte. But it carries libtiff.
So the header is read here and written anew, as one gray 8-bit picture that is as wide as a row has bytes; libtiff
unpacks that within its bounds, into no more memory than the header announces, and what the bytes mean is numpy's part.
`model.bands` makes the network's input of them.

Source: TIFF 6.0 (Adobe, 1992); sections 2, 8, 9, 13 to 15.
"""

import io
import struct
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from model.decode_limits import check_tile
from model.errors import ImageTooLargeError, UndecodableImageError, UnsupportedImageError

MAX_BLOCKS = 65_536  # strips or tiles; writers make them of 8 kB and more
MAX_SAMPLES = 1024

# Tags, and the values that are read.
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _STRIP_COUNTS, _PLANAR = 273, 274, 277, 278, 279, 284
_PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _TILE_COUNTS, _SAMPLE_FORMAT = 317, 322, 323, 324, 325, 339
_COMPRESSIONS = {1: "none", 5: "LZW", 8: "Deflate", 32946: "Deflate", 32773: "PackBits", 50000: "Zstandard"}
_NO_PREDICTOR, _DIFFERENCES = 1, 2
_TOGETHER, _APART = 1, 2  # the samples of a pixel
_MIN_IS_BLACK = 1
_BYTE_ORDERS = {b"II": "<", b"MM": ">"}
_LONG, _LARGEST_LONG = 4, 2**32 - 1


@dataclass(frozen=True)
class TiffHeader:
    """What the first directory of a file says, checked.

    Attributes:
        width: in pixels, as it lies in the file.
        height: in pixels.
        samples: of each pixel.
        bits: of each sample, 8 or 16.
        orientation: of EXIF, 1 to 8.
        byte_order: numpy's sign of it.
        compression: TIFF's number of it.
        has_differences: whether each sample has its left neighbour's value subtracted.
        is_apart: whether each band lies by itself, instead of pixel by pixel.
        block: width and height of a tile; of a strip, the picture's width and the strip's rows.
        is_tiled: whether there are tiles, not strips.
        offsets: of the blocks, in bytes; row by row, band by band where they lie apart.
        counts: of the blocks' bytes.
    """

    width: int
    height: int
    samples: int
    bits: int
    orientation: int
    byte_order: str
    compression: int
    has_differences: bool
    is_apart: bool
    block: tuple[int, int]
    is_tiled: bool
    offsets: tuple[int, ...]
    counts: tuple[int, ...]


def is_tiff(data: bytes) -> bool:
    """Whether the bytes start as a TIFF does. BigTIFF is none here."""
    return data[:4] in {b"II*\x00", b"MM\x00*"}


def read_tiff_header(data: bytes) -> TiffHeader:
    """Reads the first directory of a TIFF.

    Raises:
        UndecodableImageError: it is broken, or contradicts itself.
        UnsupportedImageError: its samples are not whole numbers of 8 or 16 bits, or packed in a way that is not read.
    """
    try:
        tags = _read_tags(data)
        samples = int(tags.get(_SAMPLES, 1))
        bits = _read_bits(tags, samples=samples)
        header = _read_layout(tags, samples=samples, bits=bits, byte_order=_BYTE_ORDERS[data[:2]])
    except (UndecodableImageError, UnsupportedImageError):
        raise
    except Exception as err:  # hostile bytes make Pillow's reader raise anything
        raise UndecodableImageError(f"the TIFF's header is broken ({type(err).__name__})") from err
    _check_layout(header)
    return header


def read_samples(data: bytes, header: TiffHeader) -> npt.NDArray[Any]:
    """Unpacks the samples.

    Returns:
        uint8 or uint16 in the file's byte order, (samples, height, width), as it lies in the file.

    Raises:
        UndecodableImageError: truncated or broken.
    """
    if not header.is_apart:
        return _unpack(data, header, samples=header.samples, first=0).transpose(2, 0, 1)
    blocks = len(header.offsets) // header.samples
    return np.concatenate(
        [_unpack(data, header, samples=1, first=band * blocks).transpose(2, 0, 1) for band in range(header.samples)]
    )


def write_tiff(pixels: npt.NDArray[np.uint8] | npt.NDArray[np.uint16]) -> bytes:
    """Returns an uncompressed TIFF of one strip, pixel by pixel; (samples, height, width)."""
    samples, height, width = pixels.shape
    bits = 8 * pixels.itemsize
    content = np.ascontiguousarray(pixels.transpose(1, 2, 0)).astype(f"<u{pixels.itemsize}").tobytes()
    tags = {
        _WIDTH: (width,),
        _HEIGHT: (height,),
        _BITS: (bits,) * samples,
        _COMPRESSION: (1,),
        _PHOTOMETRIC: (_MIN_IS_BLACK,),
        _STRIP_OFFSETS: (8,),
        _SAMPLES: (samples,),
        _STRIP_ROWS: (height,),
        _STRIP_COUNTS: (len(content),),
        _PLANAR: (_TOGETHER,),
    }
    content += bytes(len(content) % 2)
    return _join(content, tags, byte_order="<")


def _read_tags(data: bytes) -> ImageFileDirectory_v2:
    tags = ImageFileDirectory_v2(data[:8])
    file = io.BytesIO(data)
    file.seek(tags.next)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tags.load(file)
    if _WIDTH not in tags or _HEIGHT not in tags:
        raise UndecodableImageError("the TIFF's header is truncated or broken: it has no width and height")
    return tags


def _read_bits(tags: ImageFileDirectory_v2, *, samples: int) -> int:
    if not 1 <= samples <= MAX_SAMPLES:
        raise UnsupportedImageError(f"the TIFF has {samples} samples a pixel; expected 1 to {MAX_SAMPLES}")
    bits, formats = set(tags.get(_BITS, (1,))), set(tags.get(_SAMPLE_FORMAT, (1,)))
    if formats != {1} or not (bits == {8} or bits == {16}):
        kind = "/".join({1: "unsigned", 2: "signed", 3: "float"}.get(each, "other") for each in sorted(formats))
        width = "/".join(map(str, sorted(bits)))
        raise UnsupportedImageError(f"the TIFF has {kind} samples of {width} bits; send unsigned ones of 8 or 16")
    return int(bits.pop())


def _read_layout(tags: ImageFileDirectory_v2, *, samples: int, bits: int, byte_order: str) -> TiffHeader:
    width, height = int(tags[_WIDTH]), int(tags[_HEIGHT])
    compression, predictor = int(tags.get(_COMPRESSION, 1)), int(tags.get(_PREDICTOR, _NO_PREDICTOR))
    if compression not in _COMPRESSIONS or predictor not in {_NO_PREDICTOR, _DIFFERENCES}:
        names = ", ".join(dict.fromkeys(_COMPRESSIONS.values()))
        raise UnsupportedImageError(
            f"the TIFF has compression {compression} with predictor {predictor}; read as bands are {names}, "
            "with predictor 1 or 2"
        )
    if int(tags.get(_FILL_ORDER, 1)) != 1:
        raise UnsupportedImageError("the TIFF has its bits in reverse order; save it with fill order 1")
    is_tiled = _TILE_OFFSETS in tags
    if is_tiled:
        block = int(tags[_TILE_WIDTH]), int(tags[_TILE_HEIGHT])
    else:
        block = width, min(height, int(tags.get(_STRIP_ROWS, height)))
    orientation = int(tags.get(_ORIENTATION, 1))
    return TiffHeader(
        width=width,
        height=height,
        samples=samples,
        bits=bits,
        orientation=orientation if orientation in range(1, 9) else 1,
        byte_order=byte_order,
        compression=compression,
        has_differences=predictor == _DIFFERENCES and compression != 1,
        is_apart=int(tags.get(_PLANAR, _TOGETHER)) == _APART and samples > 1,
        block=block,
        is_tiled=is_tiled,
        offsets=tuple(map(int, tags[_TILE_OFFSETS if is_tiled else _STRIP_OFFSETS])),
        counts=tuple(map(int, tags[_TILE_COUNTS if is_tiled else _STRIP_COUNTS])),
    )


def _check_layout(header: TiffHeader) -> None:
    if min(header.width, header.height, *header.block) < 1:
        raise UndecodableImageError("the TIFF's header is broken: a size is 0")
    if header.is_tiled:
        check_tile(*header.block)
        if header.block[0] % 16 or header.block[1] % 16:
            raise UndecodableImageError(
                f"the TIFF has tiles of {header.block[0]} x {header.block[1]}; expected multiples of 16"
            )
    across, down = -(-header.width // header.block[0]), -(-header.height // header.block[1])
    wanted = across * down * (header.samples if header.is_apart else 1)
    if wanted > MAX_BLOCKS:
        raise ImageTooLargeError(f"the TIFF has {wanted} strips or tiles; at most {MAX_BLOCKS} are accepted")
    if not len(header.offsets) == len(header.counts) == wanted:
        raise UndecodableImageError(
            f"the TIFF has {len(header.offsets)} offsets and {len(header.counts)} sizes of strips or tiles; "
            f"its size makes {wanted}"
        )
    places = (*header.offsets, *header.counts)  # of any type that a tag may have, and written anew as unsigned ones
    if min(places) < 0 or max(places) > _LARGEST_LONG:
        raise UndecodableImageError("the TIFF's header is broken: a strip or tile lies outside of any file")


def _unpack(data: bytes, header: TiffHeader, *, samples: int, first: int) -> npt.NDArray[Any]:
    """Unpacks some of the blocks as one picture: (height, width, samples)."""
    size = header.bits // 8
    wide = samples * size
    blocks = len(header.offsets) // (header.samples if header.is_apart else 1)
    own = slice(first, first + blocks)
    tags: dict[int, tuple[int, ...]] = {
        _WIDTH: (header.width * wide,),
        _HEIGHT: (header.height,),
        _BITS: (8,),
        _COMPRESSION: (header.compression,),
        _PHOTOMETRIC: (_MIN_IS_BLACK,),
        _SAMPLES: (1,),
        _PLANAR: (_TOGETHER,),
    }
    if header.is_tiled:
        tags |= {_TILE_WIDTH: (header.block[0] * wide,), _TILE_HEIGHT: (header.block[1],)}
        tags |= {_TILE_OFFSETS: header.offsets[own], _TILE_COUNTS: header.counts[own]}
    else:
        tags |= {_STRIP_ROWS: (header.block[1],)}
        tags |= {_STRIP_OFFSETS: header.offsets[own], _STRIP_COUNTS: header.counts[own]}
    raw = _decode(_join(data[8:] + bytes(len(data) % 2), tags, byte_order=header.byte_order))
    values = np.frombuffer(raw, f"{header.byte_order}u{size}").reshape(header.height, header.width, samples)
    return _add_up(values, every=header.block[0]) if header.has_differences else values


def _decode(tiff: bytes) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its many pixels, which the caller has counted
        try:
            with Image.open(io.BytesIO(tiff), formats=("TIFF",)) as image:
                return image.tobytes()
        except MemoryError:
            raise
        except Image.DecompressionBombError as err:
            raise ImageTooLargeError(f"the TIFF has too many pixels: {err}") from err
        except Exception as err:  # as in read_tiff_header
            raise UndecodableImageError(f"the TIFF is truncated or broken: {err}") from err


def _add_up(values: npt.NDArray[Any], *, every: int) -> npt.NDArray[Any]:
    """Undoes the differences to the left neighbour, which start anew in each block; sums wrap around."""
    whole = np.empty_like(values)
    for left in range(0, values.shape[1], every):
        part = values[:, left : left + every]
        np.cumsum(part, axis=1, dtype=values.dtype.newbyteorder("="), out=whole[:, left : left + every])
    return whole


def _join(content: bytes, tags: dict[int, tuple[int, ...]], *, byte_order: str) -> bytes:
    """Returns a TIFF of this content, which starts at its byte 8, and a directory behind it."""
    start = 8 + len(content)
    entries, beyond = b"", b""
    behind = start + 2 + 12 * len(tags) + 4
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"{byte_order}{len(values)}L", *values)
        if len(packed) > 4:
            packed, beyond = struct.pack(f"{byte_order}L", behind + len(beyond)), beyond + packed
        entries += struct.pack(f"{byte_order}HHL", tag, _LONG, len(values)) + packed
    head = (b"II*\x00" if byte_order == "<" else b"MM\x00*") + struct.pack(f"{byte_order}L", start)
    directory = struct.pack(f"{byte_order}H", len(tags)) + entries + bytes(4)
    return b"".join((head, content, directory, beyond))
