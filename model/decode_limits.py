"""What an image file may hold beside its pixels, so that none costs more than the largest picture that is accepted.

`max_pixels` bounds what pixels cost. A hostile file needs few of them: a JPEG can refine the same picture in a thousand
scans, a PNG can carry a thousand colour profiles to unpack. `check_file` counts such parts on the raw bytes, before the
decoder sees them; `check_opened` knows what the decoder has read from the header. docs/preprocessing.md has figures.
"""

import re

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.TiffImagePlugin import TiffImageFile

from model.errors import ImageTooLargeError, UndecodableImageError, UnsupportedImageError
from model.png import SIGNATURE, walk_chunks

MAX_PIXELS = 50_000_000  # 200 MB, as Pillow holds RGB; a current phone's photograph has 12 to 50 million
MAX_BYTES = 100_000_000  # half of what MAX_PIXELS take uncompressed; TorchServe's own limit is 6.5 MB unless raised
MAX_SCANS = 32  # of a JPEG; encoders write 10, optimisers some 20
MAX_SEGMENTS = 1000  # of a JPEG before its first scan; a colour profile takes up to 255
MAX_EXIF_SEGMENTS = 32  # of a JPEG; an EXIF block of more than 64 kB takes several, and Pillow adds each to all before
MAX_CHUNKS = 1000  # of a PNG, without those of frames
PIXEL_CHUNK_BYTES = 256  # a PNG may have one more chunk of pixels for each; encoders write 8 kB and more
MAX_STRAY_BYTES = 65_536  # between the segments of a JPEG's header
MAX_TILE_PIXELS = 4_194_304  # of a TIFF, which costs a whole tile's memory for one pixel of it; writers make 512 x 512
MAX_RUN_LENGTH_PIXELS = 4_000_000  # of a run-length coded BMP, which Pillow decodes in Python

_FRAME_CHUNKS = {b"fcTL", b"fdAT"}
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, without DHT, JPG and DAC
_SEQUENTIAL = {0xC0, 0xC1, 0xC9}
_PLAIN_SEGMENTS = {0xC4, 0xDB, 0xDD, *range(0xE0, 0xF0), 0xFE}  # DHT, DQT, DRI, APP0 to APP15, COM
_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xDA)}
_AFTER_ENTROPY = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # a marker: neither a stuffed byte, a restart nor padding
_STRIP_OFFSETS, _TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS = 273, 322, 323, 324


def check_file(data: bytes) -> None:
    """Refuses a JPEG or PNG whose parts, other than pixels, would cost too much to read.

    Raises:
        UndecodableImageError: too many scans, segments or chunks.
        UnsupportedImageError: a JPEG of other than 8 bits a sample.
    """
    if data.startswith(b"\xff\xd8\xff"):
        scan, has_one = _check_jpeg_header(data)
        # A count over all bytes is fast, and never too low. Only a file appended to the JPEG makes it too high.
        if not has_one and data.count(b"\xff\xda", scan) > MAX_SCANS:
            _check_scans(data, scan)
    elif data.startswith(SIGNATURE):
        _check_chunks(data)


def check_opened(image: Image.Image, data: bytes) -> None:
    """Refuses what only Pillow's reading of the header shows.

    Raises:
        ImageTooLargeError: a run-length coded BMP of more than MAX_RUN_LENGTH_PIXELS.
        UndecodableImageError: a TIFF whose tiles have more than MAX_TILE_PIXELS or no size, or whose JPEG strips have
            more than MAX_SCANS each, on average.
    """
    if isinstance(image, BmpImageFile) and any(tile.codec_name == "bmp_rle" for tile in image.tile):
        _check_run_length_pixels(*image.size)
    if isinstance(image, TiffImageFile):
        sides = [image.tag_v2.get(tag, 0) for tag in (_TILE_WIDTH, _TILE_LENGTH)]
        if any(isinstance(side, str | bytes | tuple) for side in sides):
            raise UndecodableImageError("the TIFF's header is broken: a tile's size is no number")
        check_tile(*sides)
    if isinstance(image, TiffImageFile) and "jpeg" in str(image.info.get("compression")):
        _check_strips(data, strips=len(image.tag_v2.get(_STRIP_OFFSETS) or image.tag_v2.get(_TILE_OFFSETS) or "?"))


def check_tile(width: int, height: int) -> None:
    """Refuses a TIFF of huge tiles, each of which is unpacked whole, however small the picture.

    Raises:
        UndecodableImageError: more than MAX_TILE_PIXELS.
    """
    if width * height > MAX_TILE_PIXELS:
        raise UndecodableImageError(
            f"the TIFF has tiles of {width} x {height} pixels; at most {MAX_TILE_PIXELS} are accepted; save strips"
        )


def _check_run_length_pixels(width: int, height: int) -> None:
    if width * height > MAX_RUN_LENGTH_PIXELS:
        raise ImageTooLargeError(
            f"the run-length coded BMP has {width} x {height} pixels; at most {MAX_RUN_LENGTH_PIXELS} are accepted; "
            "save it uncompressed"
        )


def _check_strips(data: bytes, *, strips: int) -> None:
    scans = data.count(b"\xff\xda")
    if scans > MAX_SCANS * strips:
        raise UndecodableImageError(f"the TIFF has {scans} JPEG scans in {strips} strips; at most {MAX_SCANS} each")


def _check_jpeg_header(data: bytes) -> tuple[int, bool]:
    """Walks the segments as Pillow does.

    Returns:
        Where the first scan's marker lies, or the file's end; and whether libjpeg will read that scan only, because the
        picture is sequential and the scan has all its components.
    """
    position, segments, exif, stray, components, has_one = 2, 0, 0, 0, b"", False
    while position + 1 < len(data):
        if data[position] != 0xFF or data[position + 1] in {0x00, 0xFF}:
            position, stray = position + 1, stray + 1
        else:
            marker = data[position + 1]
            if marker == _SOS:
                has_one = components == data[position + 4 : position + 5]
                break
            if marker in _FRAMES:
                components = _read_frame(data[position : position + 10])
            exif += marker == _APP1 and data[position + 4 : position + 10] == b"Exif\x00\x00"
            position, segments = _skip_segment(data, position), segments + 1
        if segments > MAX_SEGMENTS or stray > MAX_STRAY_BYTES:
            raise UndecodableImageError(
                f"the JPEG has more than {MAX_SEGMENTS} segments or {MAX_STRAY_BYTES} stray bytes before its pixels"
            )
    if exif > MAX_EXIF_SEGMENTS:
        raise UndecodableImageError(f"the JPEG has {exif} segments of EXIF; at most {MAX_EXIF_SEGMENTS} are accepted")
    return position, has_one


def measure_plain_jpeg(data: bytes) -> tuple[int, int] | None:
    """Returns width and height of a JPEG that every decoder reads alike, and None for all others.

    That is: nothing but segments with a length before the pixels, one frame header, of a sequential Huffman-coded
    picture of 8 bits with one component or Y, Cb and Cr, one scan, and nothing behind the end of the image. Decoders
    differ in how they skip what is odd, so that one may see another picture, or another size, than the other.
    """
    position, size, count = 2, None, 0
    if not data.startswith(b"\xff\xd8"):
        return None
    while position + 4 <= len(data):
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        segment = data[position + 4 : position + 2 + length]
        if data[position] != 0xFF or length < 2 or len(segment) != length - 2:
            return None
        position += 2 + length
        if marker == _SOS:
            end = _AFTER_ENTROPY.search(data, position)
            is_whole = end is not None and end.start() == len(data) - 2 and data[-1] == _EOI
            return size if is_whole and segment[:1] == bytes([count]) else None
        if marker in (0xC0, 0xC1):
            if size is not None or len(segment) < 6 or segment[0] != 8:
                return None
            size, count = (int.from_bytes(segment[3:5], "big"), int.from_bytes(segment[1:3], "big")), segment[5]
            if segment[6::3] not in (b"\x01", b"\x01\x02\x03") or len(segment) != 6 + 3 * count or 0 in size:
                return None
        elif marker not in _PLAIN_SEGMENTS:
            return None
    return None


def _read_frame(segment: bytes) -> bytes:
    """Returns the number of components, as a byte, of a sequential frame, and none of any other."""
    if segment[4:5] not in (b"\x08", b""):
        raise UnsupportedImageError(f"the JPEG has {segment[4]}-bit samples; send 8 bits")
    return segment[9:10] if segment[1] in _SEQUENTIAL else b""


def _check_scans(data: bytes, position: int) -> None:
    """Counts the scans from the first one's marker to the end of the image, as libjpeg finds them."""
    scans = 0
    while position + 1 < len(data) and data[position + 1] != _EOI:
        scans += data[position + 1] == _SOS
        if scans > MAX_SCANS:
            raise UndecodableImageError(f"the JPEG has more than {MAX_SCANS} scans; save it anew with fewer")
        found = _AFTER_ENTROPY.search(data, _skip_segment(data, position))
        position = found.start() if found else len(data)


def _skip_segment(data: bytes, position: int) -> int:
    if data[position + 1] in _WITHOUT_LENGTH:
        return position + 2
    return position + 2 + max(2, int.from_bytes(data[position + 2 : position + 4], "big"))


def _check_chunks(data: bytes) -> None:
    left = {b"IDAT": MAX_CHUNKS + len(data) // PIXEL_CHUNK_BYTES, b"iCCP": 1}
    others = MAX_CHUNKS
    for kind, _, _ in walk_chunks(data):
        if kind in left:
            left[kind] -= 1
        elif kind not in _FRAME_CHUNKS:
            others -= 1
        if others < 0 or left.get(kind, 0) < 0:
            name = kind.decode("latin-1")
            raise UndecodableImageError(f"the PNG has too many chunks, the last of them {name!r}; save it anew")
