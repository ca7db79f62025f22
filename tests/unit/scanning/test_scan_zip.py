"""The zip itself: what TorchServe's Java sees, what other tools see, and where the two part."""

import io
import stat
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from imgcls.archive.scanning import ScanReport
from imgcls.archive.scanning.entries import BOMB_BYTES

Rules = Callable[[Path], dict[tuple[str, str], str]]
Make = Callable[..., Path]
EVIL = b"import os\nos.system('id')\n"


def add(mar: Path, name: str, content: bytes = b"", *, mode: int = 0, method: int = zipfile.ZIP_STORED) -> Path:
    """Appends an entry, whatever zipfile thinks of it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a duplicate name
        with zipfile.ZipFile(mar, "a") as archive:
            info = zipfile.ZipInfo(name)
            info.external_attr, info.create_system, info.compress_type = mode << 16, 3, method
            archive.writestr(info, content)
    return mar


def split(mar: Path) -> tuple[bytes, bytes, bytes]:
    """Returns the local part, the directory and the end record."""
    data = mar.read_bytes()
    end = data.rindex(b"PK\5\6")
    start = struct.unpack_from("<L", data, end + 16)[0]
    return data[:start], data[start:end], data[end:]


def join(mar: Path, local: bytes, directory: bytes, end: bytes, *, start: int | None = None) -> Path:
    """Writes the three parts, with the directory's offset put right."""
    offset = struct.pack("<L", len(local) if start is None else start)
    mar.write_bytes(local + directory + end[:16] + offset + end[20:])
    return mar


def local_part(tmp_path: Path, name: str, content: bytes) -> bytes:
    return split(add(tmp_path / "one.zip", name, content))[0]


def test_an_honest_archive_passes(make_archive: Make, scan: Callable[..., ScanReport]) -> None:
    report = scan(make_archive())
    assert report.passes and report.findings == ()


@pytest.mark.parametrize(
    "name",
    [
        "../../up.txt",
        "a/../../up.txt",
        "/etc/passwd",
        "C:/x.txt",
        "..\\up.txt",
        "a\\b.txt",
        "a//b",
        "./a",
        "a\nb",
        "x" * 5000,
    ],
)
def test_names_that_leave_the_folder_are_critical(make_archive: Make, rules: Rules, name: str) -> None:
    path = name.replace("\n", "\\n")
    assert rules(add(make_archive(), name, b"x"))["unsafe-name", path] == "critical"


def test_a_name_cut_by_a_nul_is_seen_whole(make_archive: Make, rules: Rules) -> None:
    mar = add(make_archive(), "handlerXpy.txt", EVIL)
    mar.write_bytes(mar.read_bytes().replace(b"handlerXpy.txt", b"hookX.py\0.txt\0"))
    assert rules(mar)["unsafe-name", "hookX.py\\x00.txt\\x00"] == "critical"


def test_a_name_that_readers_decode_differently_is_a_warning(make_archive: Make, rules: Rules) -> None:
    mar = add(make_archive(), "na\u00efve.txt", b"x")
    assert rules(mar) == {}
    local, directory, end = split(mar)  # without the flag that says UTF-8
    unmarked = [part.replace(b"\x00\x08", b"\x00\x00") for part in (local, directory)]
    assert rules(join(mar, *unmarked, end))["ambiguous-name", "na\u00efve.txt"] == "warning"


@pytest.mark.parametrize(
    ("kind", "rule"), [(stat.S_IFLNK, "symlink"), (stat.S_IFCHR, "special-file"), (stat.S_IFIFO, "special-file")]
)
def test_links_and_devices_are_critical(make_archive: Make, rules: Rules, kind: int, rule: str) -> None:
    assert rules(add(make_archive(), "odd", b"/etc/passwd", mode=kind | 0o777))[rule, "odd"] == "critical"


def test_an_executable_bit_is_only_mentioned(make_archive: Make, scan: Callable[..., ScanReport]) -> None:
    report = scan(add(make_archive(), "tool.txt", b"x", mode=stat.S_IFREG | 0o755))
    assert [(finding.rule, finding.path) for finding in report.findings] == [("executable-bit", "tool.txt")]
    assert report.passes


@pytest.mark.parametrize("name", ["handler.py", "HANDLER.py", "\uff48andler.py", "HANDLER.PY"])
def test_two_entries_that_can_be_one_file_are_critical(make_archive: Make, rules: Rules, name: str) -> None:
    found = rules(add(make_archive(), name, EVIL))
    assert found["duplicate-entry", name] == "critical"
    assert found["python-process", name] == "critical"  # the second is judged too


def test_an_encrypted_entry_is_critical(make_archive: Make, rules: Rules) -> None:
    mar = make_archive()
    data = bytearray(mar.read_bytes())
    data[data.index(b"PK\3\4") + 6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    mar.write_bytes(data)
    assert rules(mar)["encrypted-entry", "MAR-INF/MANIFEST.json"] == "critical"


def test_an_entry_that_only_torchserve_sees_is_found_and_judged(
    make_archive: Make, rules: Rules, tmp_path: Path
) -> None:
    mar = make_archive()
    local, directory, end = split(mar)
    join(mar, local + local_part(tmp_path, "sitecustomize.py", EVIL), directory, end)
    assert "sitecustomize.py" not in zipfile.ZipFile(mar).namelist()
    found = rules(mar)
    assert found["smuggled-entry", "sitecustomize.py"] == "critical"
    assert found["python-process", "sitecustomize.py"] == "critical"


def test_an_entry_hidden_inside_anothers_compressed_data_is_found(
    make_archive: Make, rules: Rules, tmp_path: Path
) -> None:
    """A deflated entry ends where its data says; Python believes the size, and skips what stands behind."""
    mar = add(make_archive(), "a.txt", b"x" * 99, method=zipfile.ZIP_DEFLATED)
    smuggled = local_part(tmp_path, "hook.py", EVIL)
    local, directory, end = split(mar)
    for position in (local.rindex(b"PK\3\4") + 18, directory.rindex(b"PK\1\2") + 20):  # the packed size, twice
        part = local if position < len(local) and local[position - 18 : position - 14] == b"PK\3\4" else directory
        packed = struct.unpack_from("<L", part, position)[0] + len(smuggled)
        changed = part[:position] + struct.pack("<L", packed) + part[position + 4 :]
        local, directory = (changed, directory) if part is local else (local, changed)
    join(mar, local + smuggled, directory, end)
    assert zipfile.ZipFile(mar).read("a.txt") == b"x" * 99
    found = rules(mar)
    assert found["smuggled-entry", "hook.py"] == "critical"
    assert found["damaged-entry", "a.txt"] == "critical"


def test_an_entry_with_two_names_is_critical(make_archive: Make, rules: Rules) -> None:
    mar = make_archive()
    local, directory, end = split(mar)
    join(mar, local.replace(b"index_to_name.json", b"sitecustomizeXX.py"), directory, end)
    found = rules(mar)
    assert found["header-mismatch", "sitecustomizeXX.py"] == "critical"


@pytest.mark.parametrize(("offset", "value"), [(14, b"\1\2\3\4"), (18, b"\1\0\0\0"), (22, b"\1\0\0\0"), (8, b"\0\0")])
def test_local_numbers_unlike_the_directorys_are_critical(
    make_archive: Make, rules: Rules, offset: int, value: bytes
) -> None:
    """Checksum, packed size, size, method."""
    mar = make_archive()
    local, directory, end = split(mar)
    position = local.index(b"handler.py") - 30 + offset
    join(mar, local[:position] + value + local[position + len(value) :], directory, end)
    assert rules(mar)["header-mismatch", "handler.py"] == "critical"


def zip64_part(*sizes: int) -> bytes:
    return struct.pack(f"<2H{len(sizes)}Q", 1, 8 * len(sizes), *sizes)


@pytest.mark.parametrize(
    ("extra", "sizes", "is_ambiguous"),
    [
        (zip64_part(26, 26), (0xFFFFFFFF, 0xFFFFFFFF), False),
        (struct.pack("<2HL", 0x5855, 4, 7), (26, 26), False),
        (zip64_part(26, 26) + zip64_part(9, 9), (0xFFFFFFFF, 0xFFFFFFFF), True),  # Java takes the last
        (zip64_part(26, 9), (26, 0xFFFFFFFF), True),  # Java takes both
        (zip64_part(26), (26, 0xFFFFFFFF), True),  # Java takes none
        (zip64_part(26, 26), (26, 26), True),
        (struct.pack("<2HQ", 1, 16, 26), (0xFFFFFFFF, 26), True),  # Java leaves out what is cut off
        (struct.pack("<2HB", 0x5855, 0, 0), (26, 26), False),
        (struct.pack("<2HL", 0x5855, 4, 7) * 2, (26, 26), True),
    ],
)
def test_a_header_that_java_takes_for_another_is_critical(
    make_archive: Make, rules: Rules, extra: bytes, sizes: tuple[int, int], is_ambiguous: bool
) -> None:
    mar = add(make_archive(), "last.txt", EVIL)
    local, directory, end = split(mar)
    place = local.rindex(b"PK\3\4")
    name_end = place + 30 + len("last.txt")
    header = local[place : place + 18] + struct.pack("<2L2H", *sizes, len("last.txt"), len(extra))
    join(mar, local[:place] + header + local[place + 30 : name_end] + extra + local[name_end:], directory, end)
    assert (("ambiguous-header", "last.txt") in rules(mar)) == is_ambiguous


def test_an_entry_that_torchserve_does_not_reach_is_critical(make_archive: Make, rules: Rules) -> None:
    mar = make_archive()
    mar.write_bytes(b"#!/bin/sh\n" + mar.read_bytes())  # Python puts the offsets right by itself
    assert zipfile.ZipFile(mar).testzip() is None
    found = rules(mar)
    assert found["hidden-entry", "MAR-INF/MANIFEST.json"] == "critical"
    assert found["outside-data", ""] == "warning"


def test_a_directory_entry_without_a_local_header_is_critical(make_archive: Make, rules: Rules) -> None:
    mar = add(make_archive(), "last.txt", b"x")
    local, directory, end = split(mar)
    cut = local.rindex(b"PK\3\4")
    join(mar, local[:cut] + bytes(len(local) - cut), directory, end)
    assert rules(mar)["hidden-entry", "last.txt"] == "critical"


def test_two_entries_over_the_same_bytes_are_critical(make_archive: Make, rules: Rules) -> None:
    mar = add(make_archive(), "last.txt", b"x")
    local, directory, end = split(mar)
    last = directory.rindex(b"PK\1\2")
    again = directory[last:].replace(b"last.txt", b"more.txt")
    count = struct.pack("<2H", 6, 6)
    end = end[:8] + count + struct.pack("<L", len(directory + again)) + end[16:]
    assert rules(join(mar, local, directory + again, end))["overlapping-entries", "more.txt"] == "critical"


def test_an_entry_inside_anothers_data_is_critical(make_archive: Make, rules: Rules, tmp_path: Path) -> None:
    mar = make_archive()
    inner = local_part(tmp_path, "inner.py", EVIL)
    add(mar, "outer.bin", inner)
    add(mar, "inner.py", EVIL)
    local, directory, end = split(mar)
    position = directory.rindex(b"PK\1\2") + 42
    moved = directory[:position] + struct.pack("<L", local.index(inner)) + directory[position + 4 :]
    join(mar, local[: local.rindex(b"PK\3\4")], moved, end)
    assert zipfile.ZipFile(mar).read("inner.py") == EVIL
    assert rules(mar)["overlapping-entries", "inner.py"] == "critical"


@pytest.mark.parametrize("place", ["between", "before the directory", "after", "comment"])
def test_bytes_that_belong_to_no_entry_are_a_warning(make_archive: Make, rules: Rules, place: str) -> None:
    mar = make_archive()
    local, directory, end = split(mar)
    if place == "after":
        mar.write_bytes(mar.read_bytes() + b"payload")
    elif place == "comment":
        mar.write_bytes(local + directory + end[:20] + b"\7\0payload")
    elif place == "before the directory":
        join(mar, local + b"payload", directory, end)
    else:
        cut = local.rindex(b"PK\3\4")
        position = directory.rindex(b"PK\1\2") + 42
        moved = directory[:position] + struct.pack("<L", cut + 7) + directory[position + 4 :]
        join(mar, local[:cut] + b"payload" + local[cut:], moved, end)
    assert zipfile.ZipFile(mar).testzip() is None
    assert rules(mar)["outside-data", ""] == "warning"


def test_a_bomb_is_left_before_it_is_unpacked(
    make_archive: Make, scan: Callable[..., ScanReport], tmp_path: Path
) -> None:
    report = scan(make_archive({"zeros.bin": bytes(BOMB_BYTES + (1 << 20))}))
    found = {(finding.rule, finding.path): str(finding.severity) for finding in report.findings}
    assert found == {("size-bomb", "zeros.bin"): "critical"}


def test_a_bomb_that_claims_to_be_small_is_one(make_archive: Make, rules: Rules) -> None:
    mar = make_archive({"zeros.bin": bytes(BOMB_BYTES + (1 << 20))})
    size = struct.pack("<L", BOMB_BYTES + (1 << 20))
    mar.write_bytes(mar.read_bytes().replace(size, struct.pack("<L", 9)))
    assert rules(mar)["size-bomb", "zeros.bin"] == "critical"


def test_an_entry_inside_a_nested_zip_can_be_a_bomb(make_archive: Make, rules: Rules) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.bin", bytes(BOMB_BYTES + (1 << 20)))
    assert rules(make_archive({"a.zip": buffer.getvalue()}))["size-bomb", "a.zip!zeros.bin"] == "critical"


def test_more_entries_than_any_model_has_are_not_read(
    make_archive: Make, rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imgcls.archive.scanning.headers.MAX_ENTRIES", 3)
    assert rules(make_archive()) == {("too-many-entries", ""): "critical"}


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_torchserve_does_not_know_is_critical(make_archive: Make, rules: Rules, method: int) -> None:
    assert rules(add(make_archive(), "a.txt", b"x", method=method))["unknown-compression", "a.txt"] == "critical"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_damaged_entry_is_critical(make_archive: Make, rules: Rules, method: int) -> None:
    mar = add(make_archive(), "a.txt", b"some text that is damaged", method=method)
    data = bytearray(mar.read_bytes())
    data[data.rindex(b"PK\3\4") + 40] ^= 0xFF
    mar.write_bytes(data)
    assert rules(mar)["damaged-entry", "a.txt"] == "critical"


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\5\6" + bytes(18) + b"x" * 70_000, b"PK\3\4" + bytes(100)])
def test_what_is_no_zip_is_critical(tmp_path: Path, rules: Rules, content: bytes) -> None:
    mar = tmp_path / "m.mar"
    mar.write_bytes(content)
    assert rules(mar) == {("broken-zip", ""): "critical"}


def test_no_cut_or_flipped_archive_makes_the_scan_fail(make_archive: Make, scan: Callable[..., ScanReport]) -> None:
    """Whatever the bytes are, the answer is a report; and one that does not pass, where the end is cut off."""
    mar = make_archive()
    data = mar.read_bytes()
    for length in range(0, len(data), 7):
        mar.write_bytes(data[:length])
        assert not scan(mar).passes
    for position in range(len(data)):
        mar.write_bytes(data[:position] + bytes([data[position] ^ 0xFF]) + data[position + 1 :])
        scan(mar)


@pytest.mark.parametrize("streamed", [True, False])
def test_entries_with_their_sizes_behind_them_are_read(
    tmp_path: Path, files: dict[str, bytes | str], scan: Callable[..., ScanReport], streamed: bool
) -> None:
    """What `zip -` and Java's own jar write."""

    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return not streamed

        def tell(self) -> int:
            raise OSError

    buffer = Pipe() if streamed else io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    mar = tmp_path / "m.mar"
    mar.write_bytes(buffer.getvalue())
    assert bool(mar.read_bytes()[6] & 8) == streamed
    assert scan(mar).findings == ()
