"""Differentially private training (DP-SGD) from Opacus' parts, and what it has cost so far as (epsilon, delta).

    backward ─► gradient of each image ─► clip to --dp-clip ─► sum + noise ─► optimiser
                 GradSampleModule          └──── DPOptimizer ────┘  │
                                                                    └─► RDPAccountant ─► epsilon, train_record.json

What follows the noise (the step filter, the optimiser, the mean of the weights) sees nothing else of the images, so it
costs nothing. Opacus' PrivacyEngine is not used: train.py keeps its own loop, batches and checkpoints.

Source: Abadi et al., "Deep Learning with Differential Privacy", CCS 2016, arXiv:1607.00133.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from imgcls.errors import RunError, UsageError, describe_missing
from imgcls.training.batches import Batches
from imgcls.training.checkpoint import Progress
from imgcls.training.config import TrainConfig
from imgcls.training.distributed import World
from imgcls.training.poisson import PoissonSampling
from imgcls.training.randomness import Draw
from imgcls.training.record import PrivacyRecord, write_privacy

# Orders of Rényi divergence; Opacus' own end at 63, which is too low for an epsilon below one.
ORDERS = [*(1 + tenth / 10 for tenth in range(1, 100)), *range(11, 64), *(2**power for power in range(6, 11))]


class Privacy:
    """The private gradient of a run and its account; has a state, for checkpoints.

    Args:
        network: which learns; Opacus' hooks are put on its layers.
        optimiser: of its parameters.
        config: clip, delta, and either the noise or the epsilon to be spent on the whole run.
        sampling: of the training images.
        run: the run directory.

    Raises:
        UsageError: the network mixes images, delta is too large, or no noise reaches the epsilon.
    """

    def __init__(
        self, network: nn.Module, optimiser: Optimizer, config: TrainConfig, *, sampling: PoissonSampling, run: Path
    ) -> None:
        from opacus import GradSampleModule  # here, because it costs a second
        from opacus.accountants import RDPAccountant
        from opacus.optimizers import DPOptimizer

        refuse_network(network, config)
        self.sampling, self.run, self.device = sampling, run, next(network.parameters()).device
        self.delta = choose_delta(config.dp_delta, images=sampling.images)
        self.noise = config.dp_noise or find_noise(
            config.dp_epsilon or 0.0, delta=self.delta, rate=sampling.rate, steps=config.epochs * sampling.steps
        )
        for module in network.modules():  # hooks see outputs as views, which may not be changed in place
            if hasattr(module, "inplace"):
                module.inplace = False  # type: ignore[assignment]
        # Opacus hooks the first layer too, whose inputs are images and need no gradient; torch remarks on that.
        warnings.filterwarnings("ignore", message="Full backward hook is firing")
        self._samples = GradSampleModule(network, loss_reduction="mean")
        self._private = DPOptimizer(
            optimiser,
            noise_multiplier=self.noise,
            max_grad_norm=config.dp_clip,
            expected_batch_size=sampling.rate * sampling.images,
        )
        self._accountant = RDPAccountant()

    def privatise(self, progress: Progress) -> None:
        """Replaces the gradient of a backward pass by the private one, and enters the step into the account.

        An image whose own gradient is not finite weighs nothing. To skip the step for it, as training does otherwise,
        would tell that the image was there.
        """
        drop_broken(self._private.params)
        generator = self.sampling.generator_at(Draw.NOISE, progress.epoch, progress.step)
        if self.device.type != "cpu":
            generator = seed_on(self.device, generator)
        self._private.generator = generator
        self._private.pre_step()
        self._accountant.step(noise_multiplier=self.noise, sample_rate=self.sampling.rate)
        for parameter in self._private.params:
            parameter.grad_sample = parameter.summed_grad = None

    def describe(self) -> str:
        """Returns such as "epsilon 2.31 at delta 1e-05"."""
        return f"epsilon {self._measure():.3g} at delta {self.delta:.3g}"

    def write(self) -> str:
        """Writes what was spent so far into the run's record, and returns a few words on it for the log."""
        record = PrivacyRecord(
            noise_multiplier=self.noise,
            clip_norm=self._private.max_grad_norm,
            sample_rate=self.sampling.rate,
            steps=sum(steps for _, _, steps in self._accountant.history),
            epsilon=self._measure(),
            delta=self.delta,
        )
        write_privacy(self.run, record)
        return f"  {self.describe()}"

    def state_dict(self) -> dict[str, Any]:
        """Returns the account and the key of all that is drawn."""
        history = [list(entry) for entry in self._accountant.history]
        return {"noise": self.noise, "history": history, "sampling": self.sampling.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets them.

        Raises:
            ValueError: the noise is another: it was found for another length of the run; or it was drawn otherwise.
        """
        if state_dict["noise"] != self.noise:
            raise ValueError(
                f"its noise multiplier was {state_dict['noise']:.4g}, now {self.noise:.4g}, as --dp-epsilon is for one "
                "length of the run; expected the same --epochs"
            )
        self._accountant.history = [tuple(entry) for entry in state_dict["history"]]
        self.sampling.load_state_dict(state_dict["sampling"])

    def _measure(self) -> float:
        return measure_epsilon(self._accountant, delta=self.delta)


def open_privacy(
    network: nn.Module, optimiser: Optimizer, config: TrainConfig, train: Batches, *, run: Path, world: World
) -> Privacy | None:
    """Returns the private gradient of a run that asks for it, and otherwise None.

    Raises:
        UsageError: something of the run does not go together with it.
        RunError: Opacus is not installed.
    """
    if train.sampling is None:
        return None
    if world.size > 1:
        raise UsageError(f"--dp-noise and --dp-epsilon are for one process, not {world.size}; run python train.py")
    try:
        return Privacy(network, optimiser, config, sampling=train.sampling, run=run)
    except ModuleNotFoundError as err:
        raise RunError(describe_missing(err)) from err


def refuse_network(network: nn.Module, config: TrainConfig) -> None:
    """Refuses a network of which no image has a gradient of its own.

    Raises:
        UsageError: a layer mixes the images of a batch, or keeps statistics of them.
    """
    from opacus.validators import ModuleValidator

    if config.network == "simple_cnn":
        instead = """leave "norm": "batch" out of --parameters"""
    else:
        instead = "give a --network with group or layer norm, such as timm/resnet50_gn or timm/vit_tiny_patch16_224"
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            raise UsageError(f"{name} is a {type(module).__name__}, which mixes images, so none is private; {instead}")
        if list(module.buffers(recurse=False)) and list(module.parameters(recurse=False)):
            raise UsageError(f"{name} is a {type(module).__name__} with buffers, which are not private; {instead}")
    if errors := ModuleValidator.validate(network.train()):
        raise UsageError(f"{config.network} cannot be trained privately: {str(errors[0]).splitlines()[0]}; {instead}")


def choose_delta(given: float | None, *, images: int) -> float:
    """Returns the delta that is given, or the largest power of ten below 1 / images.

    Raises:
        UsageError: it is not below 1 / images.
    """
    delta = given or 10.0 ** -len(str(images))
    if delta >= 1 / images:
        raise UsageError(
            f"--dp-delta is {delta:g}; expected below 1 / {images:,} training images, as to publish one of them whole "
            "would be as private"
        )
    return delta


def find_noise(epsilon: float, *, delta: float, rate: float, steps: int) -> float:
    """Returns the noise multiplier with which so many steps spend at most epsilon, and hardly less.

    Raises:
        UsageError: no noise does.
    """
    from opacus.accountants.utils import get_noise_multiplier

    try:
        noise: float = get_noise_multiplier(
            target_epsilon=epsilon,
            target_delta=delta,
            sample_rate=rate,
            steps=steps,
            epsilon_tolerance=epsilon / 100,
            alphas=ORDERS,
        )
    except ValueError as err:
        raise UsageError(f"--dp-epsilon is {epsilon:g}, which no noise reaches at delta {delta:g}; raise it") from err
    return noise


def measure_epsilon(accountant: Any, *, delta: float) -> float:
    """Returns the epsilon of all steps that Opacus' accountant knows: an upper bound, by Rényi divergence."""
    return float(accountant.get_epsilon(delta=delta, alphas=ORDERS))


def seed_on(device: torch.device, generator: torch.Generator) -> torch.Generator:
    """Returns a generator of another device, seeded with 63 bits that a CPU's draws."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))


@torch.no_grad()
def drop_broken(parameters: list[nn.Parameter]) -> None:
    """Sets the gradients of each image to nothing whose gradient is not finite somewhere; in place."""
    gradients: list[Tensor] = [parameter.grad_sample for parameter in parameters]  # type: ignore[attr-defined]
    if not gradients or not len(gradients[0]):
        return
    is_whole = torch.stack([each.reshape(len(each), -1).isfinite().all(1) for each in gradients]).all(0)
    for each in gradients:
        each[~is_whole] = 0.0
