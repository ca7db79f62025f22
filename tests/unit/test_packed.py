import os
import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from handler.integrity import INTEGRITY_FILE, IntegrityError, check_tree
from handler.packed import STORE_VARIABLE, check_store
from imgcls.archive.contents import extract
from imgcls.archive.publish import add_signature


@pytest.fixture
def store(tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model store with the archive and one of something else, as a worker's environment names it."""
    store = tmp_path / "store"
    store.mkdir()
    shutil.copyfile(archive, store / "colors.mar")
    (store / "another.mar").write_bytes(b"half of an upload")
    monkeypatch.setenv(STORE_VARIABLE, str(store))
    return store


def unpack(mar: Path, folder: Path) -> Path:
    """Unpacks whatever the zip holds, as TorchServe does, and makes sure that the tree alone shows nothing."""
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(folder)
    check_tree(folder)
    return folder


def look_unpacked_now(folder: Path) -> None:
    """Lets what was done to the store look as if it had been done before the tree was unpacked."""
    soon_s = time.time() + 60
    os.utime(folder / INTEGRITY_FILE, (soon_s, soon_s))


def zip_again(mar: Path, *, order: Callable[[list[str]], list[str]], method: int) -> None:
    with zipfile.ZipFile(mar) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(mar, "w") as archive:
        for name in order(list(content)):
            archive.writestr(zipfile.ZipInfo(name), content[name], compress_type=method)


def flip(mar: Path, place: int) -> None:
    content = bytearray(mar.read_bytes())
    content[place] ^= 1
    mar.write_bytes(content)


def test_the_file_as_packed_passes_signed_or_not(store: Path, tmp_path: Path):
    check_store(unpack(store / "colors.mar", tmp_path / "tree"))
    add_signature(store / "colors.mar", b"signature", tmp_path / "signed.mar")
    shutil.move(tmp_path / "signed.mar", store / "colors.mar")
    check_store(unpack(store / "colors.mar", tmp_path / "signed"))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"])
@pytest.mark.parametrize("order", [lambda names: names[::-1], lambda names: names], ids=["reversed", "zipped again"])
def test_entries_in_another_order_are_refused(store: Path, tmp_path: Path, order, method):
    zip_again(store / "colors.mar", order=order, method=method)
    with pytest.raises(IntegrityError, match=r"colors\.mar: its entries stand in another order, or bytes"):
        check_store(unpack(store / "colors.mar", tmp_path / "tree"))


def test_bytes_that_unpacking_does_not_show_are_refused(store: Path, tmp_path: Path):
    mar = store / "colors.mar"
    tree, content = unpack(mar, tmp_path / "tree"), mar.read_bytes()
    look_unpacked_now(tree)
    with zipfile.ZipFile(mar) as archive:
        directory = archive.start_dir
    record = content.rindex(INTEGRITY_FILE.encode()) - 46  # its place in the directory
    # The time in the first header, a mode and a comment's length in the directory, what makes it unreadable, and all
    # that the directory says of the record by which an archive is known.
    places = (10, directory + 38, len(content) - 2, directory, len(content) - 20)
    for place in (*places, *range(record, record + 46 + len(INTEGRITY_FILE))):
        flip(mar, place)
        with pytest.raises(IntegrityError, match="bytes beside their content were changed"):
            check_store(tree)
        flip(mar, place)
    check_store(tree)


def test_a_zip_that_is_cut_short_or_goes_on_is_refused(store: Path, tmp_path: Path):
    mar = store / "colors.mar"
    tree, content = unpack(mar, tmp_path / "tree"), mar.read_bytes()
    with zipfile.ZipFile(mar) as archive:
        directory = archive.start_dir
    for changed in (content[:directory], content[:-30], content[:-10], content + b"x", content + bytes(70_000)):
        mar.write_bytes(changed)
        look_unpacked_now(tree)
        with pytest.raises(IntegrityError, match="bytes beside their content were changed"):
            check_store(tree)


def test_an_archive_that_was_replaced_or_removed_is_no_reason_to_refuse(store: Path, tmp_path: Path, caplog):
    tree = unpack(store / "colors.mar", tmp_path / "tree")
    look_unpacked_now(tree)
    (store / "colors.mar").write_bytes(b"the next version")
    check_store(tree)
    (store / "colors.mar").unlink()
    check_store(tree)
    assert "holds no archive any more that is the one from which this was unpacked" in caplog.text


def test_without_a_store_nothing_is_compared(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(STORE_VARIABLE, raising=False)
    extract(archive, folder=tmp_path / "tree")
    check_store(tmp_path / "tree")


@pytest.mark.parametrize("change", ["signed", "overwritten by half", "flipped"])
def test_what_is_done_to_the_store_later_does_not_keep_a_worker_from_starting_again(
    store: Path, tmp_path: Path, change: str
):
    mar = store / "colors.mar"
    tree = unpack(mar, tmp_path / "tree")
    time.sleep(0.02)
    if change == "signed":
        add_signature(mar, b"signature", tmp_path / "signed.mar")
        shutil.move(tmp_path / "signed.mar", mar)
    elif change == "flipped":
        flip(mar, 10)
    else:
        size = mar.stat().st_size
        mar.write_bytes(os.urandom(size // 2) + mar.read_bytes()[size // 2 :])
    check_store(tree)


def test_half_of_another_upload_of_the_same_size_is_not_taken_for_ours(store: Path, tmp_path: Path):
    tree = unpack(store / "colors.mar", tmp_path / "tree")
    size = (store / "colors.mar").stat().st_size
    (store / "colors.mar").write_bytes(os.urandom(size))
    look_unpacked_now(tree)
    check_store(tree)


def test_odd_things_in_the_store_do_not_matter(store: Path, tmp_path: Path):
    (store / "a.mar").symlink_to(tmp_path / "nowhere")
    (store / "b.mar").mkdir()
    with zipfile.ZipFile(store / "c.mar", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(INTEGRITY_FILE, b"{}" * 1000)
    flip(store / "c.mar", 60)
    tree = unpack(store / "colors.mar", tmp_path / "tree")
    look_unpacked_now(tree)
    check_store(tree)
