"""Disk, memory and processes that run out under a run end it in one line that says what to do."""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from torch.utils.data import get_worker_info

from imgcls.errors import DataError, RunError
from imgcls.training import augment, checkpoint
from imgcls.training.exhaustion import name_what_ran_out

CROPPED = ("--crop-scale", 0.5, "--workers", 1)


def test_a_full_disk_is_named_with_the_run_that_goes_on(tmp_path, train_photos, monkeypatch):
    write = checkpoint.write_atomic

    def fail(path: Path, data: bytes) -> None:
        if path.stem == "00000004":  # of the first epoch's end
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomic", fail)
        with pytest.raises(
            RunError, match=r"run: cannot be written: No space left on device; make room or .* --resume"
        ):
            train_photos(tmp_path / "run")
    assert train_photos(tmp_path / "run", "--resume") == 0


def test_a_killed_process_that_decodes_is_named(tmp_path, train_photos, monkeypatch):
    def die(*_: object, **__: object) -> None:
        assert get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(augment, "_draw_crop", die)
    with pytest.raises(RunError, match=r"a process that decodes images is gone, .* lower --workers, then --resume"):
        train_photos(tmp_path / "run", *CROPPED)


def test_an_image_that_goes_under_a_run_is_named_in_one_line(tmp_path, train_photos, photos, train, monkeypatch):
    data = shutil.copytree(photos, tmp_path / "photos")

    def remove_all(*_: object) -> None:
        for image in data.rglob("*.*"):
            image.unlink()

    monkeypatch.setattr(train, "write_config", remove_all)
    with pytest.raises(DataError, match=r"No such file .*; it could be read before: put it back, then go on") as error:
        train_photos(tmp_path / "run", *CROPPED, data=data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried 2 GiB.\nmore"),
            "CUDA out of memory. Tried 2 GiB.; lower --b",
        ),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
            "allocate memory; lower --batch-size",
        ),
        (
            RuntimeError(
                "Caught RuntimeError in DataLoader worker process 0.\nTraceback\n"
                "RuntimeError: unable to allocate shared memory(shm) for file </x>: No space left on device (28)\n"
            ),
            "RuntimeError: unable to allocate shared memory(shm) for file </x>: No space left on device (28); the proc",
        ),
    ],
)
def test_memory_that_runs_out_is_said_in_one_line(tmp_path, error, said):
    with pytest.raises(RunError) as found, name_what_ran_out(tmp_path):
        raise error
    assert said in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nTraceback\nRuntimeError: a defect"),
        OSError(errno.EACCES, "Permission denied", "cat.jpg"),
    ],
)
def test_other_errors_go_through(tmp_path, error):
    with pytest.raises(type(error)) as found, name_what_ran_out(tmp_path):
        raise error
    assert found.value is error
