"""Checks a safetensors file's header against its bytes; reads no tensor.

A file that passes is data and nothing else: its header names each tensor's place, and the places fill the file without
gap or overlap. Source: https://github.com/huggingface/safetensors#format
"""

import json
import math
from typing import IO, Any

# The library's own limit is 100 MB; headers of the largest public models have a few.
MAX_HEADER_BYTES = 16 << 20
_BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_BITS |= dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8)
_BITS |= dict.fromkeys(("U16", "I16", "F16", "BF16"), 16) | dict.fromkeys(("U32", "I32", "F32"), 32)
_BITS |= dict.fromkeys(("U64", "I64", "F64", "C64"), 64)


class BrokenTensorsError(Exception):
    """The header of a safetensors file is not true."""


def check_tensors(content: IO[bytes], *, size_bytes: int) -> None:
    """Checks the header.

    Raises:
        BrokenTensorsError: it does not describe the file to the last byte.
    """
    content.seek(0)
    length = int.from_bytes(content.read(8), "little")
    if not 2 <= length <= min(MAX_HEADER_BYTES, size_bytes - 8):
        raise BrokenTensorsError(f"its header claims {length:,} bytes of {size_bytes:,}")
    try:
        header = json.loads(content.read(length), object_pairs_hook=_refuse_repetition)
        places = sorted(_check_tensor(name, header[name]) for name in header if name != "__metadata__")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as err:
        raise BrokenTensorsError(f"its header cannot be read: {' '.join(str(err).split())[:200]}") from err
    notes = header.get("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(note, str) for note in notes.values()):
        raise BrokenTensorsError("its __metadata__ is not text by name")
    end = 0
    for begin, stop, name in places:
        if begin != end:
            raise BrokenTensorsError(f"tensor {name!r} begins at {begin:,}, expected {end:,}")
        end = stop
    if end != size_bytes - 8 - length:
        raise BrokenTensorsError(f"its tensors take {end:,} bytes, and {size_bytes - 8 - length:,} are there")


def _check_tensor(name: str, fields: dict[str, Any]) -> tuple[int, int, str]:
    """Returns where the tensor begins and ends."""
    shape, (begin, end) = fields["shape"], fields["data_offsets"]
    numbers = [*shape, begin, end]
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in numbers):
        raise ValueError(f"tensor {name!r} has numbers that are none")
    bits = math.prod(shape) * _BITS[fields["dtype"]]
    if bits != 8 * (end - begin):
        raise ValueError(f"tensor {name!r} of {fields['dtype']} {shape} takes {bits // 8:,} bytes, not {end - begin:,}")
    return begin, end, name


def _refuse_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a name stands in it twice")
    return fields
