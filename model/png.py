"""The chunks of a PNG, and those of its texts that Pillow would take for findings of its own.

Pillow keeps each text under the text's own name, beside what it has read from other chunks. So a text that is called
`interlace` has the rows taken for Adam7's, one called `bbox` moves them, and one called `transparency` takes the place
of the transparent colour. No other format lets a file choose such names.
"""

import struct
from collections.abc import Iterator

SIGNATURE = b"\x89PNG"

_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_LONGEST_NAME = 79  # as the standard has it
# What Pillow's PNG reader puts into `info`, without `exif` and `xmp`, which some programs do write as texts.
_OWN_NAMES = {
    *(b"aspect", b"bbox", b"blend", b"chromaticity", b"default_image", b"disposal", b"dpi", b"duration", b"gamma"),
    *(b"icc_profile", b"interlace", b"loop", b"srgb", b"transparency"),
}


def walk_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields the type of each chunk before IEND, and where its content starts and ends, perhaps beyond the data."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        if kind == b"IEND":
            return
        yield kind, position + 8, position + 8 + length
        position += 12 + length


def drop_own_names(data: bytes) -> bytes:
    """Returns a PNG without the texts that have names of Pillow's; any other data as it is."""
    if not data.startswith(SIGNATURE):
        return data
    texts = [(start, end) for kind, start, end in walk_chunks(data) if kind in _TEXTS]
    dropped = [(start, end) for start, end in texts if _read_name(data, start, end) in _OWN_NAMES]
    if not dropped:
        return data
    edges = [0, *(edge for start, end in dropped for edge in (start - 8, end + 4)), len(data)]
    return b"".join(data[left:right] for left, right in zip(edges[::2], edges[1::2], strict=True))


def _read_name(data: bytes, start: int, end: int) -> bytes:
    return data[start : min(end, start + _LONGEST_NAME + 1)].partition(b"\0")[0]
