"""Reads a safetensors file as a stream, with the standard library: which tensors it holds, and the hash of each.

Memory stays flat, however large the file.

Source: https://huggingface.co/docs/safetensors (8 bytes of length, a JSON header, the tensors' bytes end to end)
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import IO, Any

MAX_HEADER_BYTES = 100_000_000  # safetensors' own
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """What the header says of one tensor; `begin` and `end` count from the end of the header."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """How many bytes its values take."""
        return self.end - self.begin

    @property
    def elements(self) -> int:
        """How many values it holds."""
        return prod(self.shape)

    def __str__(self) -> str:
        """Returns `F32 64x3x7x7`."""
        return f"{self.dtype} {'x'.join(map(str, self.shape)) or 'scalar'}"


def read_tensors(stream: IO[bytes]) -> list[Tensor]:
    """Reads the header, in the order of the bytes; leaves the stream where the first tensor begins.

    Raises:
        ValueError: it is not a safetensors file.
    """
    length = int.from_bytes(stream.read(8), "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise ValueError(f"is no safetensors file: its header would have {length:,} bytes")
    header = json.loads(stream.read(length))
    if not isinstance(header, dict):
        raise ValueError("is no safetensors file: its header is no JSON object")
    tensors = [_parse(name, fields) for name, fields in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: tensor.begin)
    end = 0
    for tensor in tensors:
        if tensor.begin != end or tensor.end < tensor.begin:
            raise ValueError(f"is no safetensors file: tensor {tensor.name!r} is not where it must be")
        end = tensor.end
    return tensors


def hash_tensors(stream: IO[bytes], *, on_bytes: Callable[[int], None] = lambda count: None) -> dict[Tensor, str]:
    """Returns each tensor with the SHA-256 of its values.

    Raises:
        ValueError: it is not a safetensors file, is cut short, or goes on after the last tensor.
    """
    hashes = {tensor: _hash_next(stream, tensor, on_bytes=on_bytes) for tensor in read_tensors(stream)}
    if stream.read(1):
        raise ValueError("is no safetensors file: bytes follow its last tensor")
    return hashes


def _parse(name: str, fields: Any) -> Tensor:
    try:
        begin, end = fields["data_offsets"]
        return Tensor(name, str(fields["dtype"]), tuple(map(int, fields["shape"])), int(begin), int(end))
    except (LookupError, TypeError, ValueError) as err:
        raise ValueError(f"is no safetensors file: tensor {name!r} is described wrongly ({err!r})") from err


def _hash_next(stream: IO[bytes], tensor: Tensor, *, on_bytes: Callable[[int], None]) -> str:
    digest, left = hashlib.sha256(), tensor.size_bytes
    while left:
        chunk = stream.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise ValueError(f"is cut short in tensor {tensor.name!r}")
        digest.update(chunk)
        on_bytes(len(chunk))
        left -= len(chunk)
    return digest.hexdigest()
