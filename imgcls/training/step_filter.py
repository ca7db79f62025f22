"""The filter in front of the optimiser: which steps are taken, and how large they may be.

    loss, gradient ─► finite? ─► norm within median + K·MAD of the recent ones? ─► clip ─► optimiser
                        └── no ──────────┴── no: the step is skipped, counted and logged; too many end the run

A skipped step leaves no trace in the network: its buffers, such as the running mean of a batch norm that has seen a
NaN, are put back.
"""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from imgcls.errors import RunError
from imgcls.training.config import TrainConfig

WINDOW = 100  # steps that count as recent
ENOUGH = 20  # norms without which none is called an outlier
ALLOWED = 2  # skipped steps that no budget forbids, as a part of few steps says little
SCALE = 1.4826  # of the median absolute deviation, to that of a standard deviation where values are normal
LEAST_SPREAD = 0.05  # of the median: equal norms would make any other an outlier


@dataclass(frozen=True)
class Rejection:
    """Why a step is skipped, with the value that was judged and the limit that it passed, where there is one."""

    reason: str
    value: float
    limit: float | None = None


class StepFilter:
    """Judges each step of a run by its loss and its gradient; has a state, for checkpoints."""

    def __init__(self, network: nn.Module, config: TrainConfig) -> None:
        self.reject_norm = config.reject_norm
        self.skip_budget = config.skip_budget
        self.clip_norm = config.clip_norm
        self._parameters = list(network.parameters())
        self._buffers = list(network.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]
        self._norms: deque[float] = deque(maxlen=WINDOW)
        self._outcomes: deque[bool] = deque(maxlen=WINDOW)  # whether each of the recent steps was skipped

    def begin_step(self) -> None:
        """Remembers the network's buffers."""
        if self._buffers:
            torch._foreach_copy_(self._kept, self._buffers)

    def forget_norms(self) -> None:
        """Forgets the recent norms, which tell nothing of the next ones: comes where other layers learn from now on."""
        self._norms.clear()

    def measure(self) -> Tensor:
        """Returns the norm of the whole gradient, float32 (), on its device; not finite where any part is not."""
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        return nn.utils.get_total_norm(gradients, foreach=True)

    def judge(self, *, loss: float, norm: float, is_scaled: bool = False) -> Rejection | None:
        """Returns why the step must be skipped, or None; a step that is taken has its gradient clipped.

        Args:
            loss: of the step.
            norm: of its gradient.
            is_scaled: the loss was scaled up for fp16: a gradient that overflows then costs nothing of the budget, as
                the scaler is only finding its scale.
        """
        rejection = self._find_fault(loss=loss, norm=norm)
        if is_scaled and math.isfinite(loss) and not math.isfinite(norm):
            rejection = Rejection("fp16 scale", norm)
        else:
            self._outcomes.append(rejection is not None)
        if math.isfinite(norm):
            self._norms.append(norm)  # rejected ones too: where norms rise for good, the median follows
        if rejection is None:
            self._clip(norm)
            return None
        with torch.no_grad():
            for buffer, kept in zip(self._buffers, self._kept, strict=True):
                buffer.copy_(kept)
        return rejection

    def refuse_overspent(self, rejection: Rejection, *, lr: float) -> None:
        """Raises RunError where more of the recent steps were skipped than the budget allows; call it once logged."""
        skipped = sum(self._outcomes)
        if skipped > max(ALLOWED, self.skip_budget * len(self._outcomes)):
            raise RunError(
                f"{skipped} of the last {len(self._outcomes)} steps were skipped, the last for its {rejection.reason} "
                f"of {rejection.value:.4g}; lower --lr, which is {lr:g}, or look at the files that rejections.csv names"
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns what is remembered of recent steps."""
        return {"norms": list(self._norms), "outcomes": list(self._outcomes)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets it."""
        self._norms.extend(state_dict["norms"])
        self._outcomes.extend(state_dict["outcomes"])

    def _find_fault(self, *, loss: float, norm: float) -> Rejection | None:
        if not math.isfinite(loss):
            return Rejection("loss", loss)
        if not math.isfinite(norm):
            return Rejection("gradient norm", norm)
        if self.reject_norm is not None and len(self._norms) >= ENOUGH:
            limit = find_limit(self._norms, k=self.reject_norm)
            if norm > limit:
                return Rejection("gradient norm", norm, limit)
        return None

    def _clip(self, norm: float) -> None:
        if self.clip_norm is not None and norm > self.clip_norm:
            gradients = [p.grad for p in self._parameters if p.grad is not None]
            torch._foreach_mul_(gradients, self.clip_norm / norm)


def refuse_diverged(network: nn.Module, val_loss: float, *, epoch: int, lr: float) -> None:
    """Raises RunError where the weights of an epoch are of no use, before they become the run's."""
    is_finite = torch.stack([parameter.detach().isfinite().all() for parameter in network.parameters()]).all()
    if math.isfinite(val_loss) and is_finite:
        return
    what = f"the validation loss is {val_loss:g}" if is_finite else "some weights are not finite"
    raise RunError(
        f"epoch {epoch}: {what}: the network has diverged; its weights are not written, those of a better epoch before "
        f"are kept; lower --lr, which is {lr:g}"
    )


def find_limit(values: Sequence[float] | deque[float], *, k: float) -> float:
    """Returns median + k times the scaled median absolute deviation: outliers among the values hardly move it."""
    median = statistics.median(values)
    deviation = statistics.median(abs(value - median) for value in values)
    return median + k * max(SCALE * deviation, LEAST_SPREAD * median)
