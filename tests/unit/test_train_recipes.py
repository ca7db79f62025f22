"""What a recipe is put together from: optimisers, schedules, averages, augmentation, balance; each through train.py."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from imgcls.errors import RunError, UsageError
from imgcls.training.augment import make_mix, make_transform
from imgcls.training.balance import draw_balanced, weigh_classes
from imgcls.training.checkpoint import read_newest
from imgcls.training.config import read_config
from imgcls.training.head import find_head, set_training
from imgcls.training.optimise import make_optimiser, make_schedule
from imgcls.training.randomness import Draw, drawing_at
from model.network import SimpleCNN
from model.spec import ModelSpec


def configure(*flags: object):
    return read_config([str(flag) for flag in flags], description="")


def read_history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def are_close(one: Path, other: Path, tolerance: float) -> bool:
    a, b = (load_file(run / "weights.safetensors") for run in (one, other))
    return all(torch.allclose(a[name], b[name], atol=tolerance) for name in a)


RECIPES = {
    "adamw": ("--optimiser", "adamw", "--lr", 0.005, "--weight-decay", 0.01, "--schedule", "cosine", "--ema", 0.9),
    "lion": ("--optimiser", "lion", "--lr", 0.001, "--mixup", 0.2, "--cutmix", 1, "--label-smoothing", 0.1),
    "muon": (
        "--optimiser",
        "muon",
        "--warmup-epochs",
        0.5,
        "--auto-augment",
        "trivial",
        "--erase",
        0.3,
        "--workers",
        1,
    ),
    "cropped": ("--crop-scale", 0.3, "--color-jitter", 0.4, "--flip", "--vertical-flip", "--workers", 1),
    "frozen": ("--freeze-epochs", 1, "--accumulate", 3, "--balanced", "--class-weights", "--amp", "bf16"),
    "fp16": ("--amp", "fp16", "--reject-norm", 50, "--clip-norm", 1),
}


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_trains_and_is_resumed_to_the_bit(tmp_path, train_photos, train, monkeypatch, name):
    options = (*RECIPES[name], "--checkpoint-every", 1, "--parameters", '{"widths": [4], "dropout": 0.3}')
    train_photos(tmp_path / "whole", *options, epochs=2)
    checkpoints, save = [], train.Checkpoints.save

    def die(self, progress):
        save(self, progress)
        checkpoints.append(progress.total_steps)
        if progress.total_steps == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train.Checkpoints, "save", die)
        with pytest.raises(KeyboardInterrupt):
            train_photos(tmp_path / "parts", *options, epochs=2)
    assert checkpoints == [0, 1, 2, 3]
    train_photos(tmp_path / "parts", *options, "--resume", epochs=2)
    weights = [(tmp_path / run / "weights.safetensors").read_bytes() for run in ("whole", "parts")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("optimiser", "lr"), [("adamw", 0.003), ("lion", 0.001), ("muon", 0.01)])
def test_each_optimiser_learns(tmp_path, train_photos, optimiser, lr):
    train_photos(tmp_path / "run", "--optimiser", optimiser, "--lr", lr, epochs=12)
    assert max(float(row["val_accuracy"]) for row in read_history(tmp_path / "run")) >= 0.8


def test_the_runs_weights_are_the_average_where_there_is_one(tmp_path, train_photos):
    train_photos(tmp_path / "run", "--ema", 0.9)
    parts = read_newest(tmp_path / "run")["parts"]
    written = load_file(tmp_path / "run" / "weights.safetensors")
    name = "features.0.0.weight"
    assert torch.equal(written[name], parts["ema"][f"module.{name}"])
    assert not torch.equal(written[name], parts["network"][name])


def test_a_batch_in_parts_gives_what_it_gives_whole(tmp_path, train_photos):
    for name, parts in (("whole", 1), ("parts", 3)):
        train_photos(tmp_path / name, "--accumulate", parts, "--flip", "--shift", 1, epochs=3)
    assert are_close(tmp_path / "whole", tmp_path / "parts", 1e-6)


def test_only_the_head_learns_while_the_rest_is_frozen(tmp_path, train_photos):
    parameters = ("--parameters", '{"widths": [4], "norm": "batch"}', "--freeze-epochs", 2, "--keep-checkpoints", 9)
    train_photos(tmp_path / "run", *parameters, epochs=3)

    def read(step: int) -> dict[str, torch.Tensor]:
        return torch.load(tmp_path / f"run/checkpoints/{step:08}.pt", weights_only=True)["parts"]["network"]

    start, frozen, end = read(0), read(8), read(12)
    assert {name for name in start if not torch.equal(start[name], frozen[name])} == {
        "classifier.4.weight",
        "classifier.4.bias",
    }
    assert not torch.equal(frozen["features.0.0.weight"], end["features.0.0.weight"])
    assert not torch.equal(frozen["features.0.1.running_mean"], end["features.0.1.running_mean"])


def test_the_head_of_a_timm_network_is_timms():
    network = timm.create_model("resnet18", num_classes=3)
    assert find_head(network) is network.fc
    set_training(network, is_frozen=True)
    assert [name for name, p in network.named_parameters() if p.requires_grad] == ["fc.weight", "fc.bias"]
    assert not network.bn1.training and network.fc.training


def test_training_stops_early_when_validation_does_not_improve(tmp_path, train_photos, capsys):
    train_photos(tmp_path / "run", "--lr", 1e-9, "--patience", 2, epochs=9)
    assert len(read_history(tmp_path / "run")) == 3
    assert "stopped early: 2 epochs without a better validation accuracy" in capsys.readouterr().err


def test_a_learning_rate_is_found_and_nothing_written(tmp_path, train_photos, capsys):
    train_photos(tmp_path / "run", "--find-lr")
    found = float(re.fullmatch(r"--lr (\S+)\n", capsys.readouterr().out)[1])
    assert 1e-4 < found < 5
    assert not (tmp_path / "run").exists()


def test_a_learning_rate_is_not_found_where_nothing_can_be_learnt(tmp_path, train_photos, monkeypatch):
    monkeypatch.setattr("imgcls.training.lr_finder.HIGHEST", 2e-6)
    with pytest.raises(RunError, match="the loss hardly falls at any learning rate from 1e-06 to 2e-06"):
        train_photos(tmp_path / "run", "--find-lr")


def rates(*flags: object, steps: int = 10) -> list[float]:
    config = configure("--epochs", 1, "--lr", 0.8, *flags)
    optimiser = make_optimiser(nn.Linear(2, 2), config)
    schedule = make_schedule(optimiser, config, steps_per_epoch=steps)
    found = []
    for _ in range(steps):
        found.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return found


def test_a_warm_up_rises_to_the_rate_and_the_schedule_goes_on():
    constant, cosine = rates("--warmup-epochs", 0.5), rates("--warmup-epochs", 0.5, "--schedule", "cosine")
    assert constant[0] == pytest.approx(0.008)
    assert constant[:6] == sorted(constant[:6])
    assert constant[5:] == [pytest.approx(0.8)] * 5
    assert cosine[5:] == pytest.approx(rates("--schedule", "cosine")[5:])


def test_layers_learn_slower_the_deeper_they_lie():
    network = timm.create_model("resnet18", num_classes=3)
    groups = make_optimiser(network, configure("--layer-decay", 0.5, "--lr", 1)).param_groups
    rate = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rate[id(network.fc.weight)] == 1
    assert rate[id(network.conv1.weight)] < rate[id(network.layer4[0].conv1.weight)] < 1
    with pytest.raises(UsageError, match="--layer-decay is for networks whose layers timm can order; simple_cnn"):
        make_optimiser(SimpleCNN(channels=1, size=8, classes=2), configure("--layer-decay", 0.5))


def test_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = torch.tensor([0, 0, 0, 1, 2, 2])
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels.numpy())
    assert weigh_classes(labels, classes=3).tolist() == pytest.approx(expected.tolist())
    assert weigh_classes(labels, classes=4)[3] == 0


def test_balanced_drawing_gives_each_class_its_share():
    labels = torch.tensor([0] * 900 + [1] * 100)
    drawn = labels[draw_balanced(labels, torch.Generator().manual_seed(0))]
    assert len(drawn) == 1000
    assert 0.45 < float(drawn.float().mean()) < 0.55


def test_an_image_is_augmented_alike_at_the_same_position_and_otherwise_elsewhere():
    spec = ModelSpec(channels=3, size=16, resize=16, mean=(0,) * 3, std=(1,) * 3, classes=("a", "b"))
    transform = make_transform(configure("--auto-augment", "randaugment", "--erase", 0.5), spec)
    image = torch.randint(256, (3, 16, 16), dtype=torch.uint8)

    def apply(epoch: int, index: int) -> torch.Tensor:
        with drawing_at(Draw.TRANSFORM, 0, epoch, index):
            return transform(image)

    before = torch.get_rng_state()
    assert torch.equal(apply(1, 2), apply(1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert apply(1, 2).dtype == torch.uint8
    assert len({apply(epoch, index).numpy().tobytes() for epoch in range(4) for index in range(4)}) > 8
    assert make_transform(configure(), spec) is None


def test_mixing_gives_shares_of_both_labels():
    mix = make_mix(configure("--mixup", 1, "--cutmix", 1), classes=3)
    images, targets = mix(torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 2, 0]))
    assert images.shape == (4, 3, 8, 8)
    assert targets.sum(1).tolist() == [pytest.approx(1)] * 4
    assert make_mix(configure(), classes=3) is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--warmup-epochs", 1, "--schedule", "one-cycle"), "schedule is one-cycle, which has its own"),
        (("--mixup", 1, "--noise-rate", 0.1), "which judge images unmixed"),
        (("--cutmix", 1, "--drop-gradients", 4), "which judge images unmixed"),
        (("--ema", 1), "ema: "),
        (("--optimiser", "adam"), "optimiser: "),
        (("--noise-rate", "much"), "noise_rate"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(flags, message):
    with pytest.raises(UsageError, match=message) as caught:
        configure(*flags)
    assert "\n" not in str(caught.value)


def write_images(folder: Path, mode: str) -> Path:
    draws = np.random.default_rng(0)
    for label in range(2):
        (folder / str(label)).mkdir(parents=True)
        for number in range(8):
            if mode == "I;16":
                pixels = (draws.integers(0, 30_000, (8, 8)) + 30_000 * label).astype(np.uint16)
                Image.fromarray(pixels).save(folder / str(label) / f"{number}.tiff")
            else:
                shape = (8, 8) if mode == "L" else (8, 8, len(mode))
                pixels = (draws.integers(0, 120, shape) + 120 * label).astype(np.uint8)
                Image.fromarray(pixels).save(folder / str(label) / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("mode", "flags", "channels"),
    [("L", (), 1), ("I;16", (), 1), ("RGB", (), 3), ("RGBA", ("--channels", 4), 4), ("I;16", ("--channels", 3), 3)],
)
def test_images_of_one_three_and_four_channels_and_16_bits_are_learnt(tmp_path, train_photos, mode, flags, channels):
    data = write_images(tmp_path / "data", mode)
    run = tmp_path / "run"
    train_photos(run, *flags, "--lr", 0.05, data=data, epochs=12)
    assert load_file(run / "weights.safetensors")["features.0.0.weight"].shape[1] == channels
    assert max(float(row["val_accuracy"]) for row in read_history(run)) == 1.0


def test_colour_augmentation_of_four_channels_is_refused(tmp_path, train_photos):
    data = write_images(tmp_path / "data", "RGBA")
    with pytest.raises(UsageError, match="--auto-augment is for 1 or 3 channels; the images have 4"):
        train_photos(tmp_path / "run", "--channels", 4, "--auto-augment", "trivial", data=data)
