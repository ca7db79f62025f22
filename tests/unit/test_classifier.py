from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from model.classifier import Classifier
from model.errors import SpecError, WeightsError


def test_a_run_is_loaded_and_answers(color_run: Path):
    classifier = Classifier.load(color_run)
    pixels = np.zeros((3, 3, 4, 4), np.uint8)
    for index in range(3):
        pixels[index, index] = 255
    probabilities = classifier.probabilities(pixels)
    assert (probabilities.shape, probabilities.dtype) == ((3, 3), np.float32)
    assert probabilities.argmax(1).tolist() == [0, 1, 2]
    assert probabilities.sum(1) == pytest.approx(1, abs=1e-6)
    assert classifier.logits(torch.from_numpy(pixels)).tolist() == (5 * torch.eye(3)).tolist()


def test_nothing_is_kept_between_calls(color_run: Path):
    classifier = Classifier.load(color_run)
    one, other = np.zeros((2, 3, 4, 4), np.uint8), np.full((1, 3, 4, 4), 200, np.uint8)
    before = classifier.probabilities(one)
    classifier.probabilities(other)
    assert np.array_equal(classifier.probabilities(one), before)
    assert not classifier.engine.module.training


def test_a_network_that_overflows_answers_with_nan(tmp_path: Path, write_run):
    run = write_run(tmp_path / "run", change=lambda state: state["classifier.4.bias"].fill_(float("inf")))
    assert np.isnan(Classifier.load(run).probabilities(np.zeros((1, 3, 4, 4), np.uint8))).all()


def test_a_damaged_weights_file_is_refused(tmp_path: Path, write_run):
    run = write_run(tmp_path / "run")
    weights = run / "weights.safetensors"
    for damaged in (b"", b"\x00" * 100, weights.read_bytes()[:-7]):
        weights.write_bytes(damaged)
        with pytest.raises(WeightsError, match=r"weights\.safetensors: cannot be read as safetensors"):
            Classifier.load(run)


def test_a_missing_file_is_named(tmp_path: Path, write_run):
    run = write_run(tmp_path / "run")
    (run / "weights.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"weights\.safetensors: cannot be read"):
        Classifier.load(run)
    (run / "spec.yaml").unlink()
    with pytest.raises(SpecError, match=r"spec\.yaml: cannot be read"):
        Classifier.load(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("classifier.4.bias"), r"Missing key.*classifier\.4\.bias"),
        (lambda state: state.update(extra=torch.zeros(1)), "Unexpected key.*extra"),
        (lambda state: state.update({"classifier.4.bias": torch.zeros(4)}), r"size mismatch for classifier\.4\.bias"),
    ],
)
def test_weights_of_another_network_are_refused_with_the_tensors_named(tmp_path: Path, write_run, change, message):
    run = write_run(tmp_path / "run")
    state = load_file(run / "weights.safetensors")
    change(state)
    save_file(state, run / "weights.safetensors")
    with pytest.raises(WeightsError, match=f"does not fit the network of spec.yaml: .*{message}") as caught:
        Classifier.load(run)
    assert "\n" not in str(caught.value)
