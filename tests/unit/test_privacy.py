"""Private training: each image is clipped, noise is added, the account is right, and a resumed run ends the same."""

import json
import math
import os
import shutil
import signal
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from imgcls.archive.provenance import write_provenance
from imgcls.errors import RunError, UsageError
from imgcls.training.batches import Batches
from imgcls.training.checkpoint import Progress, list_checkpoints
from imgcls.training.config import read_config
from imgcls.training.poisson import PoissonSampling
from imgcls.training.privacy import ORDERS, Privacy, choose_delta, find_noise, refuse_network, seed_on
from imgcls.training.randomness import Draw
from model.network import build_network
from model.simple_cnn import SimpleCNN
from model.spec import ModelSpec

NO_NOISE = 1e-9
SMALL = ("--parameters", '{"widths": [4]}')


def configure(*flags: object):
    return read_config([str(flag) for flag in flags], description="")


def make_network() -> SimpleCNN:
    torch.manual_seed(0)
    return SimpleCNN(channels=1, size=8, classes=3, widths=(4,))


def make_privacy(network: nn.Module, run: Path, *flags: object, images: int = 20, batch_size: int = 5) -> Privacy:
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    sampling = PoissonSampling(images, batch_size)
    return Privacy(network, optimiser, configure(*flags), sampling=sampling, run=run)


def backward(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> None:
    losses = functional.cross_entropy(network(images), labels, reduction="none")
    (losses / max(1, len(images))).sum().backward()


def read_privacy(run: Path) -> dict[str, float]:
    return json.loads((run / "train_record.json").read_text())["privacy"]


def test_without_noise_the_gradient_is_the_sum_of_the_clipped_gradients_of_the_images(tmp_path):
    network, reference = make_network(), make_network()
    images, labels = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 3
    clip = 1.2
    privacy = make_privacy(network, tmp_path, "--dp-noise", NO_NOISE, "--dp-clip", clip)
    backward(network, images, labels)
    privacy.privatise(Progress(4))

    def loss(parameters, image, label):
        return functional.cross_entropy(functional_call(reference, parameters, image[None]), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(dict(reference.named_parameters()), images, labels)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in each.values()]).norm(dim=0)
    assert norms.min() < clip < norms.max()  # some are clipped, and some are not
    factors = (clip / norms).clamp(max=1)
    for name, parameter in network.named_parameters():
        expected = (factors.view(-1, *[1] * parameter.dim()) * each[name]).sum(0) / 5  # on average a step has 5 images
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-4, atol=1e-6)


def test_noise_has_the_deviation_that_the_account_is_told(tmp_path):
    network = make_network()
    privacy = make_privacy(network, tmp_path, "--dp-noise", 2, "--dp-clip", 0.25)
    backward(network, torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.int64))  # Poisson sampling may draw nobody
    privacy.privatise(Progress(4))
    values = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert values.numel() > 500
    assert statistics.stdev(values.tolist()) == pytest.approx(2 * 0.25 / 5, rel=0.1)


def test_an_image_whose_gradient_is_not_finite_weighs_nothing_and_hides_no_other(tmp_path):
    images, labels = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    gradients = []
    for broken in (False, True):
        network = make_network()
        privacy = make_privacy(network, tmp_path, "--dp-noise", NO_NOISE)
        given = images.index_fill(0, torch.tensor([3]), math.nan) if broken else images[:3]
        losses = functional.cross_entropy(network(given), labels[: len(given)], reduction="none")
        losses.mean().backward()
        privacy.privatise(Progress(4))
        gradients.append([p.grad for p in network.parameters()])
    for alone, beside in zip(*gradients, strict=True):
        torch.testing.assert_close(beside, alone, rtol=1e-4, atol=1e-6)


def test_each_image_is_drawn_on_its_own_with_the_same_chance():
    sampling = PoissonSampling(1_000, 50)
    drawn = [sampling.draw(1, step) for step in range(400)]
    sizes = [len(indices) for indices in drawn]
    assert sampling.steps == 20
    assert statistics.mean(sizes) == pytest.approx(50, abs=1.5)
    assert statistics.variance(sizes) == pytest.approx(50 * 0.95, rel=0.25)  # shuffled batches have none
    counts = torch.bincount(torch.cat(drawn), minlength=1_000).double()
    assert counts.var() == pytest.approx(400 * 0.05 * 0.95, rel=0.2)
    assert all(torch.equal(indices.unique(), indices) for indices in drawn)


def test_what_is_drawn_needs_the_key_and_with_it_is_a_function_of_the_position():
    one, other = PoissonSampling(100, 50), PoissonSampling(100, 50)
    assert not torch.equal(one.draw(1, 0), other.draw(1, 0))
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.draw(1, 0), other.draw(1, 0))
    assert not torch.equal(one.draw(1, 0), one.draw(1, 1))
    noise, poisson = (torch.randn(20, generator=one.generator_at(draw, 1, 0)) for draw in (Draw.NOISE, Draw.POISSON))
    assert not torch.equal(noise, poisson)


def test_all_words_of_the_generator_come_from_the_key_and_none_from_a_seed_of_32_bits():
    sampling = PoissonSampling(100, 50)
    sampling.load_state_dict({"key": "5eed", "draws": 2})
    words = np.random.SeedSequence([Draw.NOISE, 0x5EED, 1, 0]).generate_state(624)
    twister = np.random.RandomState()
    twister.set_state(("MT19937", words, 624))
    generator = sampling.generator_at(Draw.NOISE, 1, 0)
    expected = twister.randint(2**32, size=2_000, dtype=np.uint32) % 2**24 / 2**24  # torch makes a float of 24 bits
    np.testing.assert_array_equal(torch.rand(2_000, generator=generator).numpy(), expected)


def test_another_device_is_seeded_anew_for_each_step():
    sampling = PoissonSampling(100, 50)
    seeds = [
        seed_on(torch.device("cpu"), sampling.generator_at(Draw.NOISE, *position)).initial_seed()
        for position in ((1, 0), (1, 1), (1, 0))
    ]
    assert seeds[0] == seeds[2] != seeds[1]
    assert max(seeds) >= 2**32


def test_a_checkpoint_whose_noise_was_drawn_otherwise_is_refused(tmp_path, train_photos):
    run = tmp_path / "run"
    train_photos(run, *SMALL, "--dp-noise", 1)
    for path in list_checkpoints(run):
        state = torch.load(path, weights_only=True)
        del state["parts"]["privacy"]["sampling"]["draws"]
        torch.save(state, path)
    with pytest.raises(RunError, match=r"an earlier version drew its images and noise otherwise .* with --overwrite"):
        train_photos(run, *SMALL, "--dp-noise", 1, "--resume", epochs=2)


def test_a_step_without_images_is_one_too(train_photos, tmp_path, monkeypatch):
    monkeypatch.setattr(PoissonSampling, "draw", lambda *_: torch.zeros(0, dtype=torch.int64))
    for number, flags in enumerate([(), ("--erase", 0.1)]):  # from memory, and by workers
        run = tmp_path / str(number)
        assert train_photos(run, *SMALL, "--dp-noise", 1, "--flip", "--shift", 1, "--workers", 1, *flags) == 0
        assert read_privacy(run)["steps"] == 3


def test_epsilon_is_that_of_opacus_and_stands_in_log_record_and_provenance(tmp_path, train_photos, capsys):
    from opacus.accountants import PRVAccountant, RDPAccountant

    run = tmp_path / "run"
    assert train_photos(run, *SMALL, "--dp-noise", 1.5, "--dp-delta", 1e-3, epochs=4) == 0
    found = read_privacy(run)
    rate, steps = 8 / 26, 3 * 4
    assert (found["sample_rate"], found["steps"], found["delta"]) == (pytest.approx(rate), steps, 1e-3)
    rdp, prv = RDPAccountant(), PRVAccountant()
    rdp.history = prv.history = [(1.5, rate, steps)]
    assert found["epsilon"] == pytest.approx(rdp.get_epsilon(1e-3, alphas=ORDERS))
    assert found["epsilon"] >= prv.get_epsilon(1e-3)  # a tighter bound of the same steps
    said = capsys.readouterr().err
    assert said.count("epsilon ") == 5
    assert f"private with epsilon {found['epsilon']:.3g} at delta 0.001" in said
    write_provenance(run, name="n", version="1", weights_sha256="0" * 64, code_sha256="0" * 64)
    statement = json.loads((run / "provenance.json").read_text())
    assert statement["predicate"]["buildDefinition"]["internalParameters"]["trainingRun"]["privacy"] == found


def test_the_noise_for_an_epsilon_spends_it_and_hardly_less(tmp_path, train_photos):
    run = tmp_path / "run"
    assert train_photos(run, *SMALL, "--dp-epsilon", 3, epochs=2) == 0
    assert 2.9 < read_privacy(run)["epsilon"] <= 3
    assert find_noise(0.5, delta=1e-5, rate=0.01, steps=1_000) > find_noise(5, delta=1e-5, rate=0.01, steps=1_000)


def test_a_resumed_run_ends_with_the_same_weights_and_the_same_account(tmp_path, train_photos):
    whole, again = tmp_path / "whole", tmp_path / "again"
    flags = (*SMALL, "--dp-noise", 1, "--checkpoint-every", 1, "--keep-checkpoints", 99)
    assert train_photos(whole, *flags, epochs=2) == 0
    for step in (0, 1, 4):
        shutil.copytree(whole, again)
        for path in list_checkpoints(again):
            if int(path.stem) > step:
                path.unlink()
        torch.rand(3)
        assert train_photos(again, *flags, "--resume", epochs=2) == 0
        assert (again / "weights.safetensors").read_bytes() == (whole / "weights.safetensors").read_bytes()
        assert read_privacy(again) == read_privacy(whole)
        shutil.rmtree(again)


def test_a_run_that_is_stopped_in_its_first_epoch_says_what_its_weights_have_cost(
    tmp_path, train_photos, monkeypatch, capsys
):
    privatise = Privacy.privatise

    def privatise_and_stop(self, progress):
        privatise(self, progress)
        os.kill(os.getpid(), signal.SIGTERM)  # not SIGINT, which is ignored in what a shell runs in the background

    monkeypatch.setattr(Privacy, "privatise", privatise_and_stop)
    assert train_photos(tmp_path / "run", *SMALL, "--dp-noise", 1) == 130
    assert read_privacy(tmp_path / "run")["steps"] == 1
    assert "private so far: epsilon " in capsys.readouterr().err


def test_two_runs_of_one_seed_draw_other_noise(tmp_path, train_photos):
    for name in ("one", "other"):
        train_photos(tmp_path / name, *SMALL, "--dp-noise", 1)
    one, other = (tmp_path / name / "weights.safetensors" for name in ("one", "other"))
    assert one.read_bytes() != other.read_bytes()


def test_a_run_for_an_epsilon_cannot_go_on_for_longer(tmp_path, train_photos):
    run = tmp_path / "run"
    train_photos(run, *SMALL, "--dp-epsilon", 3, epochs=1)
    with pytest.raises(RunError, match="--dp-epsilon is for one length of the run"):
        train_photos(run, *SMALL, "--dp-epsilon", 3, "--resume", epochs=2)


def test_mean_and_deviation_are_not_measured_on_private_images(tmp_path, train_photos):
    train_photos(tmp_path / "run", *SMALL, "--dp-noise", 1)
    assert "- 0.5\n- 0.5\n- 0.5\n" in (tmp_path / "run/spec.yaml").read_text()


def test_frozen_epochs_and_a_mean_of_the_weights_are_private_too(tmp_path, train_photos):
    run = tmp_path / "run"
    assert (
        train_photos(
            run, *SMALL, "--dp-noise", 1, "--freeze-epochs", 1, "--ema", 0.9, "--keep-checkpoints", 3, epochs=2
        )
        == 0
    )
    states = [torch.load(path, weights_only=True)["parts"]["network"] for path in list_checkpoints(run)]
    second, first, start = (state["features.0.0.weight"] for state in states)
    assert torch.equal(start, first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--dp-epsilon", 1), "dp_noise and dp_epsilon are given"),
        (("--mixup", 0.2), "mixup does not go together with dp_noise"),
        (("--cutmix", 1), "cutmix does not go"),
        (("--accumulate", 2), "accumulate does not go"),
        (("--noise-rate", "auto"), "noise_rate does not go"),
        (("--drop-gradients", 4), "drop_gradients does not go"),
        (("--balanced",), "balanced does not go"),
        (("--class-weights",), "class_weights does not go"),
        (("--compile",), "compile does not go"),
        (("--amp", "bf16"), "amp does not go"),
        (("--deterministic",), "deterministic does not go together with dp_noise or dp_epsilon: which would let"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(flags, message):
    with pytest.raises(UsageError, match=message) as caught:
        configure("--dp-noise", 1, *flags)
    assert "\n" not in str(caught.value)


def test_delta_alone_is_refused():
    with pytest.raises(UsageError, match="dp_delta is given without dp_noise or dp_epsilon"):
        configure("--dp-delta", 1e-5)


def test_several_processes_are_refused(tmp_path, train_photos):
    from imgcls.training.distributed import World
    from imgcls.training.privacy import open_privacy

    network = make_network()
    train = Batches(data=None, batch_size=5, shuffle=True, workers=1, sampling=PoissonSampling(20, 5))
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    with pytest.raises(UsageError, match="for one process, not 2"):
        open_privacy(network, optimiser, configure("--dp-noise", 1), train, run=tmp_path, world=World(0, 2))


def test_batch_norm_is_refused_by_name_with_what_to_give_instead(tmp_path, train_photos):
    with pytest.raises(UsageError, match=r'features\.0\.1 is a BatchNorm2d.*leave "norm": "batch" out of --param'):
        train_photos(tmp_path / "run", "--parameters", '{"widths": [4], "norm": "batch"}', "--dp-noise", 1)
    assert not (tmp_path / "run/weights.safetensors").exists()


def make_timm(name: str, *, size: int = 32, **parameters: object) -> tuple[nn.Module, str]:
    half, classes = (0.5,) * 3, ("a", "b", "c")
    spec = ModelSpec(
        network=f"timm/{name}", parameters=parameters, size=size, resize=size, mean=half, std=half, classes=classes
    )
    return build_network(spec), spec.network


def test_timm_networks_with_batch_norm_are_refused():
    network, name = make_timm("resnet18")
    with pytest.raises(UsageError, match=r"bn1 is a BatchNorm2d.*timm/resnet50_gn"):
        refuse_network(network, configure("--network", name, "--dp-noise", 1))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch.func's, in attention
@pytest.mark.parametrize(
    ("name", "parameters"),
    [("test_efficientnet_gn", {}), ("vit_tiny_patch16_224", {"img_size": 32, "depth": 2})],
)
def test_timm_networks_without_batch_norm_train_privately(tmp_path, name, parameters):
    network, text = make_timm(name, **parameters)
    privacy = make_privacy(network, tmp_path, "--network", text, "--dp-noise", NO_NOISE)
    images, labels = torch.rand(3, 3, 32, 32), torch.tensor([0, 1, 2])
    backward(network.train(), images, labels)
    privacy.privatise(Progress(4))
    norm = torch.stack([p.grad.norm() for p in network.parameters()]).norm()
    assert 0 < norm <= 3 / 5 + 1e-4


def test_delta_is_below_one_image():
    assert choose_delta(None, images=999) == pytest.approx(1e-3)
    assert choose_delta(None, images=50_000) == pytest.approx(1e-5)
    assert choose_delta(1e-6, images=50_000) == 1e-6
    with pytest.raises(UsageError, match="expected below 1 / 1,000 training images"):
        choose_delta(1e-3, images=1_000)
