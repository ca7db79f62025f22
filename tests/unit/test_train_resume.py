"""A run that is broken off at any step and resumed ends as one that was not; so does one that is repeated."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml

from imgcls.errors import RunError, UsageError
from imgcls.training.checkpoint import Checkpoints, list_checkpoints, read_newest

# Dropout draws from torch's global state, momentum and the schedule have states of their own, batch norm has buffers.
OPTIONS = ("--parameters", '{"widths": [4], "dropout": 0.3, "norm": "batch"}', "--flip", "--shift", 1)
OPTIONS += ("--schedule", "one-cycle", "--checkpoint-every", 1)
Train = Callable[..., int]


class Killed(BaseException):
    """Ends a run as a kill would: nothing handles it."""


def read(run: Path) -> bytes:
    return (run / "weights.safetensors").read_bytes()


def train_until(step: int, train: ModuleType, monkeypatch: pytest.MonkeyPatch, run: Callable[[], int]) -> None:
    """Runs until that many steps are done and their checkpoint is written."""

    class Deadly(Checkpoints):
        def save(self, progress):
            super().save(progress)
            if progress.total_steps == step:
                raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(train, "Checkpoints", Deadly)
        with pytest.raises(Killed):
            run()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, train_photos: Train) -> Path:
    run = tmp_path_factory.mktemp("whole") / "run"
    assert train_photos(run, *OPTIONS, epochs=2) == 0
    return run


@pytest.mark.parametrize("step", range(9))
def test_broken_off_after_any_step_and_resumed_the_weights_are_the_same(
    tmp_path, train, train_photos, monkeypatch, whole, step
):
    run = tmp_path / "run"
    train_until(step, train, monkeypatch, lambda: train_photos(run, *OPTIONS, epochs=2))
    torch.rand(1)  # as another process would stand elsewhere
    assert train_photos(run, *OPTIONS, "--resume", epochs=2) == 0
    assert read(run) == read(whole)


def test_a_run_can_be_broken_off_again_and_again(tmp_path, train, train_photos, monkeypatch, whole):
    run = tmp_path / "run"
    train_until(1, train, monkeypatch, lambda: train_photos(run, *OPTIONS, epochs=2))
    for step in (3, 4, 6):
        train_until(step, train, monkeypatch, lambda: train_photos(run, *OPTIONS, "--resume", epochs=2))
    assert train_photos(run, *OPTIONS, "--resume", epochs=2) == 0
    assert read(run) == read(whole)


def test_the_last_checkpoints_are_kept_and_the_one_before_serves_where_the_newest_is_broken(
    tmp_path, train, train_photos, monkeypatch, whole, capsys
):
    run, kept = tmp_path / "run", ("--keep-checkpoints", 3)
    train_until(6, train, monkeypatch, lambda: train_photos(run, *OPTIONS, *kept, epochs=2))
    assert [path.name for path in list_checkpoints(run)] == ["00000006.pt", "00000005.pt", "00000004.pt"]
    for path in list_checkpoints(run)[:2]:
        path.write_bytes(path.read_bytes()[:-200])
    assert train_photos(run, *OPTIONS, "--resume", epochs=2) == 0
    assert "00000005.pt: cannot be read: " in capsys.readouterr().err
    assert read(run) == read(whole)


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_run_without_a_checkpoint_that_can_be_read_is_refused(tmp_path, train_photos, content):
    train_photos(tmp_path / "run")
    for path in list_checkpoints(tmp_path / "run"):
        path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    with pytest.raises(RunError, match=r"0+\.pt: cannot be read: .*; train again with --overwrite") as caught:
        train_photos(tmp_path / "run", "--resume")
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path, train_photos, whole):
    run = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(
        RunError, match=r"checkpoint\.pt: is of an earlier version .*; train again with --overwrite, or"
    ):
        train_photos(run, "--resume")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--lr", 0.5), r"was trained with --lr 0\.01, now 0\.5; resume with --config"),
        (("--seed", 5), "was trained with --seed 0, now 5"),
        (("--batch-size", 5), "was trained with --batch-size 8, now 5"),
    ],
)
def test_resume_with_other_settings_is_refused(tmp_path, train_photos, options, message):
    run = tmp_path / "run"
    train_photos(run)
    before = read(run)
    with pytest.raises(UsageError, match=message):
        train_photos(run, "--resume", *options, epochs=2)
    assert read(run) == before


def test_resume_with_fewer_images_is_refused(tmp_path, train_photos, photos):
    run, statistics = tmp_path / "run", ("--mean", "[0, 0, 0]", "--std", "[1, 1, 1]")
    data = shutil.copytree(photos, tmp_path / "photos")
    train_photos(run, *statistics, data=data)
    for file in [*data.rglob("0[0-5].png")]:
        file.unlink()
    with pytest.raises(RunError, match="had 4 steps an epoch, now 2, as there are other training images"):
        train_photos(run, *statistics, "--resume", data=data, epochs=2)


def test_only_a_constant_schedule_can_be_lengthened(tmp_path, train_photos):
    train_photos(tmp_path / "run", "--schedule", "one-cycle")
    with pytest.raises(UsageError, match="laid out for 1 epochs, now 2; only a constant schedule can go on"):
        train_photos(tmp_path / "run", "--schedule", "one-cycle", "--resume", epochs=2)


def test_a_checkpoint_that_lacks_a_part_is_refused(tmp_path, train_photos):
    run = tmp_path / "run"
    train_photos(run)
    state = read_newest(run)
    del state["parts"]["optimiser"]
    torch.save(state, list_checkpoints(run)[0])
    with pytest.raises(RunError, match="checkpoints: does not fit the run: 'optimiser'; train again with --overwrite"):
        train_photos(run, "--resume", epochs=2)


def test_a_deterministic_run_is_repeated_by_its_configuration_to_the_byte(tmp_path, train, train_photos):
    for name in ("one", "same"):
        train_photos(tmp_path / name, *OPTIONS, "--deterministic", "--seed", 7, epochs=2)
    assert torch.are_deterministic_algorithms_enabled()
    config = tmp_path / "one" / "train_config.yaml"
    assert yaml.safe_load(config.read_text())["threads"] == torch.get_num_threads()
    assert train.main(["--config", str(config), "--out", str(tmp_path / "again")]) == 0
    assert read(tmp_path / "one") == read(tmp_path / "same") == read(tmp_path / "again")
    for name in ("spec.yaml", "train_record.json"):
        assert len({(tmp_path / run / name).read_bytes() for run in ("one", "same", "again")}) == 1
