"""Finds training images whose label is probably wrong, by their loss, and leaves them out of the gradient.

A network learns what most labels say before it learns the exceptions by heart, so a wrong label keeps a high loss while
the network is young (Arpit et al. 2017, arXiv:1706.05394). Each image's loss is averaged over the epochs, which tells
more than that of one. Once the warm-up is over, the images with the highest averages are dropped: as many as the noise
rate says, or, with "auto", those that a mixture of two Gaussians puts to its component of high losses (as in Li et al.
2020, arXiv:2002.07394). All are judged anew after each epoch, as their loss is still measured, and may return.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from imgcls.training.config import TrainConfig
from imgcls.training.distributed import World

MEMORY = 0.7  # weight of the earlier epochs in an image's average
LEAST_IMAGES = 20  # to fit a mixture to


@dataclass(frozen=True)
class Change:
    """An image that is dropped, or that returns; `value` is its average loss, `limit` what decides."""

    index: int
    is_dropped: bool
    value: float
    limit: float


class LabelFilter:
    """The average loss of each training image, and which images are dropped; has a state, for checkpoints.

    Args:
        count: of the training images.
        config: its noise_rate and noise_warmup.
        world: whose device keeps the losses, so that no step waits for them.
    """

    def __init__(self, count: int, config: TrainConfig, *, world: World) -> None:
        self.world, device = world, world.device
        self.rate: float | Literal["auto"] | None = config.noise_rate
        self.warmup = config.noise_warmup
        self.mean = torch.zeros(count, device=device)
        self.epochs = torch.zeros(count, device=device)  # in which each image was seen
        self.sums = torch.zeros(count, device=device)  # of this epoch's losses
        self.times = torch.zeros(count, device=device)  # that each image was seen in this epoch
        self.is_dropped = torch.zeros(count, dtype=torch.bool)

    def weigh(self, indices: Tensor, *, among: Tensor) -> Tensor:
        """Returns images' weights in the mean loss of a batch, float32 (B,): equal, and 0 for dropped ones.

        Args:
            indices: of the images.
            among: of all images of the step, of which they may be a part.
        """
        kept = (~self.is_dropped[among]).sum().clamp(min=1)
        return (~self.is_dropped[indices]).float() / kept

    def observe(self, losses: Tensor, indices: Tensor) -> None:
        """Notes the losses of a batch, float32 (B,); one that is not finite tells nothing."""
        if self.rate is None:
            return
        losses, indices = losses.detach().float(), indices.to(self.sums.device)
        is_finite = losses.isfinite()
        self.sums.index_add_(0, indices, losses.nan_to_num(0.0, 0.0, 0.0) * is_finite)
        self.times.index_add_(0, indices, is_finite.float())

    def end_epoch(self, epoch: int) -> list[Change]:
        """Averages the epoch's losses in, decides which images are dropped from now on, and returns what changed."""
        if self.rate is None:
            return []
        self.world.add_up(self.sums)
        self.world.add_up(self.times)
        was_seen, now = self.times > 0, self.sums / self.times.clamp(min=1)
        averaged = torch.where(self.epochs > 0, MEMORY * self.mean + (1 - MEMORY) * now, now)
        self.mean = torch.where(was_seen, averaged, self.mean)
        self.epochs += was_seen
        self.sums.zero_()
        self.times.zero_()
        if epoch < self.warmup:
            return []
        mean, before = self.mean.cpu(), self.is_dropped
        limit = find_loss_limit(mean[self.epochs.cpu() > 0], rate=self.rate)
        self.is_dropped = mean > limit
        changed = (self.is_dropped != before).nonzero().flatten().tolist()
        return [Change(index, bool(self.is_dropped[index]), float(mean[index]), limit) for index in changed]

    def state_dict(self) -> dict[str, Any]:
        """Returns all that is known of the images; all must call it, as each process has seen its own."""
        if self.rate is None:
            return {}
        known = {name: getattr(self, name).cpu() for name in ("mean", "epochs", "is_dropped")}
        return known | {name: self.world.add_up(getattr(self, name).clone()).cpu() for name in ("sums", "times")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets it; what the epoch has shown so far goes to the main process, as its end adds up those of all."""
        for name, tensor in state_dict.items():
            getattr(self, name).copy_(tensor)
        if not self.world.is_main:
            self.sums.zero_()
            self.times.zero_()


def find_loss_limit(losses: Tensor, *, rate: float | Literal["auto"]) -> float:
    """Returns the loss above which a label is taken for wrong, from the images' losses, float32 (N,)."""
    if rate != "auto":
        dropped = round(rate * len(losses))
        return float(losses.sort(descending=True).values[dropped]) if dropped < len(losses) else -1.0
    if len(losses) < LEAST_IMAGES or float(losses.std()) == 0:
        return float("inf")
    from sklearn.mixture import GaussianMixture  # here, because it costs a second

    values = losses.double().numpy().reshape(-1, 1)
    mixture = GaussianMixture(2, means_init=[[values.min()], [values.max()]], reg_covar=1e-6).fit(values)
    low, high = sorted(mixture.means_.ravel())
    between = torch.linspace(low, high, 1001, dtype=torch.float64).numpy().reshape(-1, 1)
    is_high = mixture.predict_proba(between)[:, int(mixture.means_.argmax())] > 0.5
    return float(between[int(is_high.argmax()), 0]) if is_high.any() else float(high)
