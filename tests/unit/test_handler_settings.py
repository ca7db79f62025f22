import os
from pathlib import Path

import pytest

from handler.settings import HandlerSettings, count_threads, read_settings
from model.cores import count_cores
from model.errors import SpecError


def test_settings_default_where_the_configuration_is_silent():
    assert read_settings({}) == read_settings({"handler": None}) == HandlerSettings()


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"topk": 3}, "topk: is not a field that is known here"),
        ({"top_k": 0}, r"top_k: .* \(got 0\)"),
        ({"top_k": True}, r"top_k: .* valid integer \(got True\)"),
        ({"threads": False}, r"threads: .* valid integer \(got False\)"),
        ({"threads": "all"}, r"threads.* \(got 'all'\)"),
        ({"max_pixels": 10**9}, r"max_pixels: .* less than or equal to 178956970"),
        ({"max_bytes": 0}, r"max_bytes: .* \(got 0\)"),
        (["top_k"], "valid dictionary"),
    ],
)
def test_a_setting_that_cannot_be_is_refused(section, message):
    with pytest.raises(SpecError, match=f"model-config.yaml, handler: .*{message}"):
        read_settings({"handler": section})


@pytest.mark.parametrize(
    ("cores", "config", "threads"),
    [
        (8, {"minWorkers": 2}, 4),
        (8, {"minWorkers": 3}, 2),
        (2, {"minWorkers": 4}, 1),
        (8, {}, 1),
        (8, {"minWorkers": 0}, 1),
        (8, {"minWorkers": 1}, 8),
        (8, {"minWorkers": "two"}, 1),  # as TorchServe, which logs and ignores what is no number
        (8, {"minWorkers": "2"}, 1),
        (8, {"minWorkers": True}, 1),
    ],
)
def test_workers_share_the_cores(cores, config, threads):
    assert count_threads(HandlerSettings(), config, cores=cores) == threads


def test_workers_on_gpus_share_the_cores_by_default():
    assert count_threads(HandlerSettings(), {}, gpus=2, cores=16) == 8
    assert count_threads(HandlerSettings(), {"minWorkers": 4}, gpus=2, cores=16) == 4


def test_workers_chosen_at_start_win_over_the_archives(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("IMGCLS_WORKERS", "4")
    assert count_threads(HandlerSettings(), {"minWorkers": 1}, cores=8) == 2
    monkeypatch.setenv("IMGCLS_WORKERS", "0")
    assert count_threads(HandlerSettings(), {}, cores=8) == 8


def test_threads_that_are_given_are_taken():
    assert count_threads(HandlerSettings(threads=3), {"minWorkers": 8}, cores=8) == 3


@pytest.mark.parametrize(
    ("text", "cores"),
    [("100000 100000", 1), ("50000 100000", 1), ("max 100000", None), ("", None), ("99900000 100000", None)],
)
def test_a_container_limit_holds_the_cores(tmp_path: Path, text, cores):
    path = tmp_path / "cpu.max"
    path.write_text(text)
    assert count_cores(cpu_max=path) == (cores or len(os.sched_getaffinity(0)))


def test_no_control_groups_mean_no_limit(tmp_path: Path):
    assert count_cores(cpu_max=tmp_path / "nothing") == len(os.sched_getaffinity(0))
