"""What the backward filter leaves out, what it lets through, and what it writes down of it."""

import csv
import hashlib
import json
import math
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from imgcls.archive.provenance import write_provenance
from imgcls.errors import RunError, UsageError
from imgcls.training.config import read_config
from imgcls.training.distributed import World
from imgcls.training.label_filter import LabelFilter, find_loss_limit
from imgcls.training.sample_gradients import LastLayer, find_outliers
from imgcls.training.step_filter import Rejection, StepFilter, find_limit
from model.network import SimpleCNN
from model.normalise import Normalise

BATCH_NORM = ("--parameters", '{"widths": [4], "norm": "batch"}')


def configure(*flags: object):
    return read_config([str(flag) for flag in flags], description="")


def read_log(run: Path) -> list[dict[str, str]]:
    with (run / "rejections.csv").open(newline="") as file:
        return list(csv.DictReader(file))


class PlantNaN(Normalise):
    """Normalises, and puts a NaN into the training batches with these numbers, counted from 0."""

    steps: tuple[int, ...] = ()

    def forward(self, pixels):
        images = super().forward(pixels)
        self.count = getattr(self, "count", -1) + torch.is_grad_enabled()
        return images.index_fill(3, torch.tensor([0]), math.nan) if self._is_planted() else images

    def _is_planted(self) -> bool:
        return torch.is_grad_enabled() and self.count in self.steps


@pytest.fixture
def plant(train: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """plant(3, 5) makes these training batches NaN."""

    def set_steps(*steps: int) -> None:
        monkeypatch.setattr(PlantNaN, "steps", steps)
        monkeypatch.setattr(train, "Normalise", PlantNaN)

    return set_steps


def test_a_nan_is_skipped_leaves_no_trace_in_the_network_and_is_logged(tmp_path, train_photos, plant):
    plant(1, 6)
    run = tmp_path / "run"
    assert train_photos(run, *BATCH_NORM, epochs=4) == 0
    weights = torch.load(run / "checkpoints/00000016.pt", weights_only=True)["parts"]["network"]
    assert all(tensor.isfinite().all() for tensor in weights.values())
    rows = read_log(run)
    assert {(row["epoch"], row["step"], row["event"], row["reason"], row["value"]) for row in rows} == {
        ("1", "1", "step", "loss", "nan"),
        ("2", "6", "step", "loss", "nan"),
    }
    assert len(rows) == 16  # a row for each file of the two batches
    assert all(row["file"].endswith(".png") for row in rows)
    record = json.loads((run / "train_record.json").read_text())["rejections"]
    assert record["counts"] == {"step: loss": 2}
    assert record["sha256"] == hashlib.sha256((run / "rejections.csv").read_bytes()).hexdigest()


def test_a_skipped_step_changes_nothing(tmp_path, train_photos, plant):
    """The same batches with and without a skipped one in between end with different weights, but a skipped run's first
    step gives what the first step of any run gives."""
    plant()
    train_photos(tmp_path / "clean", *BATCH_NORM, "--checkpoint-every", 1, "--keep-checkpoints", 9)
    plant(1)
    train_photos(tmp_path / "run", *BATCH_NORM, "--checkpoint-every", 1, "--keep-checkpoints", 9)

    def parts(name: str, step: int) -> dict:
        return torch.load(tmp_path / name / f"checkpoints/{step:08}.pt", weights_only=True)["parts"]

    before, after = parts("run", 1), parts("run", 2)
    for name, tensor in parts("clean", 1)["network"].items():
        assert torch.equal(tensor, before["network"][name]) and torch.equal(tensor, after["network"][name])
    assert str(before["optimiser"]) == str(after["optimiser"])
    assert not torch.equal(parts("clean", 2)["network"]["features.0.0.weight"], after["network"]["features.0.0.weight"])


def test_too_many_skipped_steps_end_the_run_with_the_reason_and_their_files(tmp_path, train_photos, plant):
    plant(*range(1, 100))
    with pytest.raises(RunError, match=r"3 of the last 4 steps were skipped, the last for its loss of nan; lower --lr"):
        train_photos(tmp_path / "run", epochs=3)
    assert len({row["step"] for row in read_log(tmp_path / "run")}) == 3


def test_the_log_of_a_resumed_run_is_that_of_a_whole_one(tmp_path, train, train_photos, plant, monkeypatch):
    plant(1, 6)
    options = (*BATCH_NORM, "--noise-rate", 0.2, "--noise-warmup", 1, "--drop-gradients", 1.5)
    train_photos(tmp_path / "whole", *options, epochs=3)
    plant(1, 6)
    train_photos(tmp_path / "parts", *options, epochs=1)
    with (tmp_path / "parts" / "rejections.csv").open("a") as file:
        file.write("2,5,step,what a killed part wrote,loss,nan,\n")
    plant(6 - 4)
    train_photos(tmp_path / "parts", *options, "--resume", epochs=3)
    logs = [(tmp_path / name / "rejections.csv").read_bytes() for name in ("whole", "parts")]
    assert logs[0] == logs[1]
    assert {row["event"] for row in read_log(tmp_path / "whole")} >= {"step", "drop", "sample"}
    weights = [(tmp_path / name / "weights.safetensors").read_bytes() for name in ("whole", "parts")]
    assert weights[0] == weights[1]
    (tmp_path / "parts" / "rejections.csv").write_text("")
    with pytest.raises(RunError, match=r"rejections\.csv has 0 bytes; expected at least"):
        train_photos(tmp_path / "parts", *options, "--resume", epochs=3)


def test_wrong_labels_are_named_and_return_when_they_prove_right(tmp_path, train_photos, photos):
    data = shutil.copytree(photos, tmp_path / "photos")
    wrong = [data / "red" / f"z{number}.png" for number in range(4)]
    for number, file in enumerate(wrong):
        shutil.copyfile(data / "green" / f"{number:02}.png", file)
    options = ("--noise-rate", 0.08, "--noise-warmup", 6, "--lr", 0.03, "--val-fraction", 0.1, "--test-fraction", 0.1)
    run = tmp_path / "run"
    assert train_photos(run, *options, data=data, epochs=14) == 0
    last = {row["file"]: row["event"] for row in read_log(run)}
    dropped = {name for name, event in last.items() if event == "drop"}
    assert all(row["reason"] == "label" and float(row["value"]) > 0 for row in read_log(run))
    assert len(dropped) == 3
    assert dropped <= {f"red/{file.name}" for file in wrong}
    counts = json.loads((run / "train_record.json").read_text())["rejections"]["counts"]
    assert counts["drop: label"] - counts.get("return: label", 0) == 3


def test_what_was_rejected_lands_in_the_provenance(tmp_path, train_photos, plant):
    plant(1)
    run = tmp_path / "run"
    train_photos(run)
    write_provenance(run, name="n", version="1", weights_sha256="0" * 64, code_sha256="0" * 64)
    details = json.loads((run / "provenance.json").read_text())["predicate"]["runDetails"]
    (log,) = [each for each in details["byproducts"] if each["name"] == "rejections.csv"]
    assert log["digest"]["sha256"] == hashlib.sha256((run / "rejections.csv").read_bytes()).hexdigest()
    assert log["annotations"]["counts"] == {"step: loss": 1}


def judge_all(steps: StepFilter, *norms: float) -> list[Rejection | None]:
    return [steps.judge(loss=1.0, norm=norm) for norm in norms]


def test_a_norm_far_above_the_recent_ones_is_rejected_until_norms_have_risen_for_good():
    steps = StepFilter(nn.Linear(2, 2), configure("--reject-norm", 5))
    assert judge_all(steps, *[1.0, 1.1, 0.9, 50.0] * 5) == [None] * 20  # not enough is known yet
    (rejection,) = judge_all(steps, 100.0)
    assert (rejection.reason, rejection.value) == ("gradient norm", 100.0)
    assert 1 < rejection.limit < 3
    outcomes = judge_all(steps, *[100.0, 110.0, 90.0] * 34)
    assert outcomes[0] is not None and outcomes[-1] is None


def test_norms_of_a_frozen_network_do_not_judge_the_whole(tmp_path, train, train_photos, monkeypatch):
    """The head's gradient alone is far shorter than that of all layers."""
    measure = train.GradientFilter.allows
    norms = {1: 0.01, 2: 5.0}  # by epoch

    def allows(self, batch, loss, *, progress, scaler):
        monkeypatch.setattr(self.steps, "measure", lambda: torch.tensor(norms[progress.epoch]))
        return measure(self, batch, loss, progress=progress, scaler=scaler)

    monkeypatch.setattr(train.GradientFilter, "allows", allows)
    common = ("--reject-norm", 8, "--batch-size", 1)
    train_photos(tmp_path / "frozen", *common, "--freeze-epochs", 1, epochs=2)
    assert not read_log(tmp_path / "frozen")
    with pytest.raises(RunError, match="3 of the last"):
        train_photos(tmp_path / "whole", *common, epochs=2)


@pytest.mark.parametrize(("loss", "norm", "reason"), [(math.nan, 1.0, "loss"), (1.0, math.inf, "gradient norm")])
def test_what_is_not_finite_is_rejected_and_buffers_are_put_back(loss, norm, reason):
    network = nn.BatchNorm2d(3)
    steps = StepFilter(network, configure())
    steps.begin_step()
    network(torch.full((2, 3, 2, 2), math.nan))
    assert network.running_mean.isnan().all()
    assert steps.judge(loss=loss, norm=norm).reason == reason
    assert torch.equal(network.running_mean, torch.zeros(3)) and network.num_batches_tracked == 0


def test_clipping_is_that_of_torch():
    one, other = (nn.Linear(3, 2) for _ in range(2))
    other.load_state_dict(one.state_dict())
    for network in (one, other):
        network(torch.arange(6.0).view(2, 3)).square().sum().backward()
    steps = StepFilter(one, configure("--clip-norm", 0.5))
    norm = steps.measure()
    assert steps.judge(loss=1.0, norm=float(norm)) is None
    assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(other.parameters(), 0.5)))
    assert torch.allclose(one.weight.grad, other.weight.grad, rtol=1e-4)


def test_the_limit_hardly_moves_with_outliers():
    values = [1.0 + 0.01 * number for number in range(100)]
    assert find_limit([*values, 1e9, 1e9], k=3) == pytest.approx(find_limit(values, k=3), rel=0.05)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_last_layer_norms_are_those_of_torch_func(smoothing):
    network = SimpleCNN(channels=1, size=4, classes=3, widths=(4,), hidden=5).eval()
    images, labels = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    last = {name: tensor for name, tensor in network.named_parameters() if name.startswith("classifier.4.")}
    assert len(last) == 2

    def loss(parameters, image, label):
        logits = functional_call(network, parameters, (image[None],))
        return functional.cross_entropy(logits, label[None], label_smoothing=smoothing)

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(last, images, labels)
    expected = torch.cat([each.flatten(1) for each in gradients.values()], 1).norm(dim=1)
    watcher = LastLayer(network, classes=3)
    found = watcher.measure(network(images), labels, label_smoothing=smoothing)
    assert torch.allclose(found, expected, rtol=1e-5)


def test_a_gradient_outlier_is_one_of_its_batch():
    norms = torch.tensor([1.0, 1.2, 0.8, 0.5, 2.0, 100.0])
    is_outlier, limit = find_outliers(norms, k=4)
    assert is_outlier.tolist() == [False] * 5 + [True]
    assert 2 < float(limit) < 100


def test_a_network_without_a_linear_last_layer_is_refused():
    with pytest.raises(UsageError, match="--drop-gradients needs a network whose last layer is linear"):
        LastLayer(nn.Conv2d(1, 3, 1), classes=3)


def observe(labels: LabelFilter, losses: torch.Tensor, epoch: int) -> list[int]:
    labels.observe(losses, torch.arange(len(losses)))
    return [change.index if change.is_dropped else -change.index for change in labels.end_epoch(epoch)]


def test_labels_are_dropped_after_the_warm_up_by_their_average_loss_and_return():
    labels = LabelFilter(10, configure("--noise-rate", 0.2, "--noise-warmup", 2), world=World())
    losses = torch.arange(10.0)
    assert observe(labels, losses, 1) == []
    assert labels.weigh(torch.arange(5), among=torch.arange(5)).tolist() == [pytest.approx(0.2)] * 5
    assert observe(labels, losses, 2) == [8, 9]
    assert labels.weigh(torch.tensor([9, 0, 1]), among=torch.tensor([9, 0, 1])).tolist() == [0.0, 0.5, 0.5]
    losses[8] = 0.0
    losses[9] = math.nan  # tells nothing
    found = [observe(labels, losses, epoch) for epoch in range(3, 6)]
    assert [7, -8] in found
    assert labels.is_dropped.nonzero().flatten().tolist() == [7, 9]


def test_auto_finds_the_component_of_high_losses_and_nothing_where_all_are_alike():
    draws = torch.Generator().manual_seed(0)
    low, high = torch.randn(700, generator=draws) * 0.2 + 0.5, torch.randn(300, generator=draws) * 0.5 + 4
    limit = find_loss_limit(torch.cat([low, high]), rate="auto")
    assert float((low > limit).float().mean()) < 0.01
    assert float((high > limit).float().mean()) > 0.99
    assert find_loss_limit(torch.ones(100), rate="auto") == math.inf


def test_an_image_that_is_seen_twice_in_an_epoch_counts_with_its_mean():
    labels = LabelFilter(2, configure("--noise-rate", 0.5, "--noise-warmup", 9), world=World())
    labels.observe(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
    labels.end_epoch(1)
    assert labels.mean.tolist() == [2.0, 5.0]


@dataclass(frozen=True)
class Threads(World):
    """Processes that are threads of one: what each adds to a sum goes through `handed`."""

    handed: list[torch.Tensor | None] = field(default_factory=list)
    gate: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))

    def add_up(self, tensor: torch.Tensor) -> torch.Tensor:
        self.handed[self.rank] = tensor.clone()
        self.gate.wait(10)
        tensor.copy_(sum(self.handed))
        self.gate.wait(10)
        return tensor


def test_what_all_processes_have_seen_of_an_epoch_is_kept_where_a_run_is_broken_off_within_it():
    handed, gate = [None, None], threading.Barrier(2)

    def train(rank: int) -> tuple[LabelFilter, dict[str, torch.Tensor]]:
        config, world = configure("--noise-rate", 0.5, "--noise-warmup", 9), Threads(rank, 2, handed=handed, gate=gate)
        labels = LabelFilter(6, config, world=world)
        labels.observe(torch.tensor([1.0, 2.0]) + 2 * rank, torch.tensor([0, 1]) + 2 * rank)
        return labels, labels.state_dict()

    def go_on(rank: int, labels: LabelFilter) -> list[float]:
        labels.observe(torch.tensor([5.0 + rank]), torch.tensor([4 + rank]))
        labels.end_epoch(1)
        return labels.mean.tolist()

    with ThreadPoolExecutor(2) as pool:
        whole = list(pool.map(train, range(2)))
        resumed = [LabelFilter(6, configure("--noise-rate", 0.5), world=labels.world) for labels, _ in whole]
        for labels in resumed:
            labels.load_state_dict(whole[0][1])  # a checkpoint is the main process's
        for filters in ([labels for labels, _ in whole], resumed):
            assert list(pool.map(go_on, range(2), filters)) == [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 2
