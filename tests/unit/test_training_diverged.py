"""A run whose weights came to nothing ends with one error, and never calls them the best."""

import math

import pytest
import torch
from torch import nn

from imgcls.errors import RunError
from imgcls.training.checkpoint import read_newest
from imgcls.training.step_filter import refuse_diverged


def spoil(train, monkeypatch, *, epoch: int, value: float) -> None:
    """Makes a weight this value once the steps of an epoch are done, as a step that is far too long does."""
    real, seen = train.validate, []

    def validate(network, *arguments, **options):
        seen.append(network)
        if len(seen) == epoch:
            with torch.no_grad():
                next(network.parameters())[0] = value
        return real(network, *arguments, **options)

    monkeypatch.setattr(train, "validate", validate)


def test_weights_that_diverged_in_the_first_epoch_are_not_written(tmp_path, train, train_photos, monkeypatch):
    spoil(train, monkeypatch, epoch=1, value=math.nan)
    with pytest.raises(
        RunError, match=r"^epoch 1: some weights are not finite: .*; lower --lr, which is 0\.5$"
    ) as caught:
        train_photos(tmp_path / "run", "--lr", 0.5)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "weights.safetensors").exists()
    assert not read_newest(tmp_path / "run")["progress"]["history"]


@pytest.mark.parametrize("options", [(), ("--select", "last"), ("--ema", 0.9)], ids=str)
def test_the_best_weights_of_before_are_kept(tmp_path, train, train_photos, monkeypatch, options):
    train_photos(tmp_path / "short", *options)
    spoil(train, monkeypatch, epoch=2, value=math.inf)
    with pytest.raises(RunError, match="epoch 2: some weights are not finite"):
        train_photos(tmp_path / "run", *options, epochs=3)
    kept = [(tmp_path / run / "weights.safetensors").read_bytes() for run in ("short", "run")]
    assert kept[0] == kept[1]
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 2


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_ends_the_run(loss):
    with pytest.raises(RunError, match=rf"^epoch 4: the validation loss is {loss:g}: the network has diverged"):
        refuse_diverged(nn.Linear(2, 2), loss, epoch=4, lr=0.1)
    assert refuse_diverged(nn.Linear(2, 2), 0.1, epoch=4, lr=0.1) is None
