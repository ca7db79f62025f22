import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from imgcls.errors import UsageError
from imgcls.training.config import TrainConfig, read_config
from imgcls.training.optimise import make_optimiser, make_schedule
from imgcls.training.start import choose_device, with_precision, with_pretraining


def read(*arguments: str) -> TrainConfig:
    return read_config(arguments, description="")


@pytest.fixture(autouse=True)
def _no_settings_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMGCLS_TRAIN_LR", raising=False)


def test_a_flag_wins_over_the_environment_over_the_file_over_the_default(tmp_path: Path, monkeypatch):
    file = tmp_path / "config.yaml"
    file.write_text("lr: 0.3\nepochs: 3\n")
    assert (read().lr, read().epochs) == (0.01, 10)
    assert read("--config", str(file)).lr == 0.3
    monkeypatch.setenv("IMGCLS_TRAIN_LR", "0.2")
    assert read("--config", str(file)).lr == 0.2
    config = read("--config", str(file), "--lr", "0.1")
    assert (config.lr, config.epochs) == (0.1, 3)


def test_a_written_configuration_repeats_the_run(tmp_path: Path):
    flags = ["--parameters", '{"widths": [4, 8]}', "--mean", "[0.5]", "--channels", "1", "--flip", "--out", "runs/x"]
    config = read(*flags, "--overwrite")
    file = tmp_path / "train_config.yaml"
    file.write_text(config.dump())
    assert read("--config", str(file)) == config.model_copy(update={"overwrite": False})
    assert set(yaml.safe_load(config.dump())) == set(TrainConfig.model_fields) - {"overwrite", "resume"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--epochs", "0"), r"epochs: .* \(got '0'\)"),
        (("--lr", "fast"), r"lr: .* \(got 'fast'\)"),
        (("--lr", "nan"), "lr: "),
        (("--schedule", "linear"), "schedule: .*'constant', 'cosine' or 'one-cycle'"),
        (("--momentum", "1"), "momentum: .* less than 1"),
        (("--nesterov", "--momentum", "0"), "nesterov is on and momentum is 0; expected a momentum above 0"),
        (("--seed", "-1"), "seed: "),
        (("--seed", str(2**70)), "seed: "),
        (("--channels", "65"), "channels: "),
        (("--mean", "half"), "mean"),
        (("--mean", "[NaN]"), r"mean\.0: .*finite"),
        (("--mean", "[0.5,"), r"^--mean is '\[0\.5,'; expected a list in JSON, such as '\[0\.5\]'$"),
        (("--parameters", "notjson"), r"^--parameters is 'notjson'; expected an object in JSON, such as '\{\"widths\""),
        (("--parameters=[1]",), r"^--parameters is '\[1\]'; expected an object in JSON"),
        (("--noise-rate", "1.5"), r"^settings: noise_rate is '1\.5'; expected auto, or a number above 0 and below 1$"),
        (("--lr", "inf"), "lr: .*finite"),
        (("--clip-norm", "inf"), "clip_norm: .*finite"),
        (("--warmup-epochs", "inf"), "warmup_epochs: .*finite"),
    ],
)
def test_a_value_that_cannot_be_is_named_on_one_line(flags, message):
    with pytest.raises(UsageError, match=message) as caught:
        read(*flags)
    assert "\n" not in str(caught.value)


def test_a_variable_that_is_no_json_is_named(monkeypatch):
    monkeypatch.setenv("IMGCLS_TRAIN_PARAMETERS", "widths")
    with pytest.raises(UsageError, match=r"^IMGCLS_TRAIN_PARAMETERS is 'widths'; expected an object in JSON, such as"):
        read()


IDLE = {
    "nesterov is on and optimiser is muon; nesterov is for sgd only": ("--nesterov", "--optimiser", "muon"),
    "momentum is 0.5 and optimiser is lion, which has none": ("--momentum", "0.5", "--optimiser", "lion"),
    "warmup_epochs is 3 and epochs is 3, so": ("--warmup-epochs", "3", "--epochs", "3"),
    "pretrained is on and network is simple_cnn": ("--weights", "a.safetensors", "--pretrained"),
    "noise_warmup is 2 and noise_rate is not given": ("--noise-warmup", "2"),
    "noise_warmup is 5 and epochs is 4, so": ("--noise-rate", "auto", "--epochs", "4"),
    "dp_clip is 0.5 without dp_noise or dp_epsilon, so training is not private": ("--dp-clip", "0.5"),
}


@pytest.mark.parametrize("reason", IDLE)
def test_a_setting_without_effect_is_refused_unless_a_run_goes_on_or_is_repeated(tmp_path: Path, capsys, reason):
    with pytest.raises(UsageError, match=rf"^settings: {re.escape(reason)}") as caught:
        read(*IDLE[reason])
    assert "\n" not in str(caught.value)
    resumed = read(*IDLE[reason], "--resume")  # of an earlier version, which trained with it
    assert f"warning: {reason}" in capsys.readouterr().err
    file = tmp_path / "train_config.yaml"
    file.write_text(resumed.dump())
    assert read("--config", str(file)) == resumed.model_copy(update={"resume": False})
    assert f"warning: {reason}" in capsys.readouterr().err


def test_a_flag_that_leaves_a_setting_of_the_file_without_effect_is_refused(tmp_path: Path, capsys):
    file = tmp_path / "train_config.yaml"
    file.write_text(read("--nesterov", "--momentum", "0.5").dump())
    with pytest.raises(UsageError, match="nesterov is on and optimiser is adamw"):
        read("--config", str(file), "--optimiser", "adamw")
    default = tmp_path / "default.yaml"
    default.write_text(read("--noise-rate", "auto").dump())
    config = read("--config", str(default), "--optimiser", "adamw", "--warmup-epochs", "9")
    assert (config.momentum, config.noise_warmup, config.noise_rate) == (0.9, 5, "auto")
    assert capsys.readouterr().err == ""


def test_freezing_what_has_learnt_nothing_is_warned_of(capsys):
    read("--freeze-epochs", "1", "--weights", "a.safetensors")
    assert capsys.readouterr().err == ""
    assert read("--freeze-epochs", "1").freeze_epochs == 1
    assert "warning: freeze_epochs is given without weights or pretrained" in capsys.readouterr().err


def test_an_unknown_flag_ends_with_usage(capsys):
    with pytest.raises(SystemExit) as caught:
        read("--learning-rate", "1")
    assert caught.value.code == 2
    assert "--learning-rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("learning_rate: 1", "learning_rate: is not a field that is known here"),
        ("lr: fast", r"lr: .* \(got 'fast'\)"),
        ("epochs: yes", r"epochs: .* valid integer \(got True\)"),
        ("- lr", "got list; expected a mapping"),
        ("", "got NoneType; expected a mapping"),
        ("lr: [", "cannot be read as YAML"),
        ("lr: 2020-99-99", "cannot be read as YAML: month must be in 1..12"),
        (f"lr: {'[' * 9000}", "cannot be read as YAML: maximum recursion depth"),
        ("lr: 0.1\nepochs: 3\nlr: 0.2", "cannot be read as YAML: lr is there twice"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_on_one_line(tmp_path: Path, text, message):
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        read("--config", str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_is_named():
    with pytest.raises(UsageError, match=r"nowhere\.yaml: cannot be read"):
        read("--config", "nowhere.yaml")


def test_every_flag_is_described(capsys):
    with pytest.raises(SystemExit):
        read("--help")
    text = capsys.readouterr().out
    for name, field in TrainConfig.model_fields.items():
        assert f"--{name.replace('_', '-')}" in text
        assert field.description


@pytest.mark.parametrize("name", ["gpu", "meta", "cuda:99", "cuda:x", ""])
def test_a_device_that_cannot_be_used_is_refused(name):
    with pytest.raises(UsageError, match=f"device is {name!r}"):
        choose_device(name)


@pytest.mark.parametrize(
    ("has", "amp"), [("amx_bf16", "bf16"), ("avx512_bf16", "bf16"), ("sve_bf16", "bf16"), ("avx512_f", None)]
)
def test_auto_precision_is_bf16_where_the_processor_has_instructions_for_it(monkeypatch, has, amp):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {has: True, "amx_fp16": False})
    assert with_precision(read("--amp", "auto", "--device", "cpu")).amp == amp
    assert with_precision(read("--amp", "fp16")).amp == "fp16"


def rates(schedule_name: str, *flags: str, steps: int = 8) -> list[float]:
    config = read("--schedule", schedule_name, "--lr", "0.8", "--epochs", "1", *flags)
    optimiser = make_optimiser(nn.Linear(2, 2), config)
    schedule = make_schedule(optimiser, config, steps_per_epoch=steps)
    found = []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_schedules_have_their_shapes():
    assert rates("constant") == [0.8] * 8
    cosine, one_cycle = rates("cosine"), rates("one-cycle")
    assert cosine[0] == pytest.approx(0.8)
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[-1] < 0.04
    assert max(one_cycle) == pytest.approx(0.8)
    assert one_cycle.index(max(one_cycle)) == 1
    assert one_cycle[-1] < 0.001


def test_weight_decay_leaves_biases_and_norms_alone():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    plain, decayed = make_optimiser(network, read("--weight-decay", "0.1")).param_groups
    assert ([p.ndim for p in decayed["params"]], decayed["weight_decay"]) == ([4, 2], 0.1)
    assert ({p.ndim for p in plain["params"]}, plain["weight_decay"]) == ({1}, 0.0)


def test_weights_of_timm_bring_the_input_that_they_were_trained_on():
    config = with_pretraining(TrainConfig(network="timm/resnet18.tv_in1k", pretrained=True, resize=300))
    assert (config.size, config.resize, config.interpolation, config.channels) == (224, 300, "bilinear", 3)
    assert config.mean == pytest.approx([0.485, 0.456, 0.406])
    fresh = TrainConfig(network="timm/resnet18.tv_in1k")
    assert with_pretraining(fresh) == fresh
