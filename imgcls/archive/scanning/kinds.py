"""Tells what a file is by its bytes, whatever its name says."""

import io
import pickletools
from enum import StrEnum
from typing import IO

from imgcls.archive.scanning.headers import BrokenZipError, TooManyEntriesError, read_directory

HEAD_BYTES = 1 << 16
_OPCODES_READ, _CERTAIN_OPCODES = 10_000, 3
# What makes a pickle call something: https://docs.python.org/3/library/pickletools.html
_IMPORTS, _CALLS = {"GLOBAL", "STACK_GLOBAL", "INST"}, {"REDUCE", "OBJ", "NEWOBJ", "NEWOBJ_EX", "INST", "BUILD"}


class Kind(StrEnum):
    """What a file can be that matters here; the text names it in a message."""

    NATIVE = "compiled code"
    SCRIPT = "a script"
    BYTECODE = "compiled Python"
    TORCH_ZIP = "a PyTorch file with a pickle inside"
    TORCHSCRIPT = "a TorchScript program"
    ZIP = "a zip archive"
    PACKED = "an archive or compressed file"
    PICKLE = "a pickle"
    TENSORS = "a safetensors file"
    OTHER = "something else"


_MAGIC = {
    b"\x7fELF": Kind.NATIVE,
    b"\xfe\xed\xfa\xce": Kind.NATIVE,  # Mach-O, four ways
    b"\xfe\xed\xfa\xcf": Kind.NATIVE,
    b"\xce\xfa\xed\xfe": Kind.NATIVE,
    b"\xcf\xfa\xed\xfe": Kind.NATIVE,
    b"\xca\xfe\xba\xbe": Kind.NATIVE,  # Mach-O for several machines, and Java classes
    b"\0asm": Kind.NATIVE,
    b"!<arch>\n": Kind.NATIVE,
    b"#!": Kind.SCRIPT,
    b"\x1f\x8b": Kind.PACKED,
    b"BZh": Kind.PACKED,
    b"\xfd7zXZ\0": Kind.PACKED,
    b"7z\xbc\xaf\x27\x1c": Kind.PACKED,
    b"Rar!\x1a\x07": Kind.PACKED,
    b"\x28\xb5\x2f\xfd": Kind.PACKED,  # zstd
}


def identify(content: IO[bytes], *, size_bytes: int) -> Kind:
    """Returns what the content is; the strongest claim first."""
    head = _head(content)
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[:2] == b"MZ" and b"PE\0\0" in head[:4096]:
        return Kind.NATIVE
    if head[2:4] == b"\r\n" and head[1:2] in b"\x0c\x0d\x0e\x0f" and len(head) > 16 and head[16] & 0x7F == 0x63:
        return Kind.BYTECODE
    if head[257:262] == b"ustar":
        return Kind.PACKED
    if head.startswith(b"PK\3\4"):
        return _identify_zip(content, size_bytes=size_bytes)
    if is_pickle(head) or (head.startswith(b"\x93NUMPY") and b"|O" in head[:256]):
        return Kind.PICKLE
    if size_bytes > 8 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size_bytes - 8:
        return Kind.TENSORS
    return Kind.OTHER


def has_zip_at_end(content: IO[bytes], *, size_bytes: int) -> bool:
    """Tells whether a file that begins as something else ends as a zip, which Python can import from."""
    try:
        return bool(read_directory(content, size_bytes=size_bytes).headers)
    except BrokenZipError:
        return False
    except TooManyEntriesError:
        return True


def is_pickle(head: bytes) -> bool:
    """Tells whether unpickling this would do anything: a pickle runs as far as it is valid, so it need not be whole."""
    stack: list[object] = []
    has_import, is_binary, count = False, head[:1] == b"\x80", 0
    try:
        for count, (opcode, _, _) in enumerate(pickletools.genops(io.BytesIO(head))):
            _move(stack, opcode)
            has_import |= opcode.name in _IMPORTS
            if has_import and opcode.name in _CALLS:
                return True
            if count > _OPCODES_READ:
                return is_binary
    except (ValueError, OverflowError, IndexError):
        return is_binary and count > _CERTAIN_OPCODES
    return is_binary or has_import


def _move(stack: list[object], opcode: pickletools.OpcodeInfo) -> None:
    """Takes what an opcode takes off the stack and puts on it what it puts there, as pickletools.dis does.

    Raises:
        ValueError: the stack does not hold it.
    """
    needs = list(opcode.stack_before)
    if pickletools.markobject in needs:
        marks = [index for index, item in enumerate(stack) if item is pickletools.markobject]
        if not marks:
            raise ValueError("no mark")
        del stack[marks[-1] :]
        needs = needs[: needs.index(pickletools.markobject)]
    if len(needs) > len(stack):
        raise ValueError("the stack is too short")
    del stack[len(stack) - len(needs) :]
    stack.extend(opcode.stack_after)


def _identify_zip(content: IO[bytes], *, size_bytes: int) -> Kind:
    try:
        names = [header.name for header in read_directory(content, size_bytes=size_bytes).headers]
    except (BrokenZipError, TooManyEntriesError):
        return Kind.ZIP
    if any(name.endswith("/constants.pkl") or "/code/" in name for name in names):
        return Kind.TORCHSCRIPT
    return Kind.TORCH_ZIP if any(name.endswith("data.pkl") for name in names) else Kind.ZIP


def _head(content: IO[bytes]) -> bytes:
    content.seek(0)
    head = content.read(HEAD_BYTES)
    content.seek(0)
    return head
