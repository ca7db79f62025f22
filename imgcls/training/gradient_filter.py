"""The filtered backward pass: which samples and which steps may change the network, and the log of those that may not.

    logits ─► weigh ─► loss ─► backward ─► allows ─► optimiser
                │                             └── step_filter: not finite, or an outlier among recent norms; clipping
                ├── label_filter: labels that are probably wrong
                └── sample_gradients: images that pull much harder than the rest of their batch

train.py calls it; each rejection is a row of rejections.csv, and their sum a part of the run's record and so of an
archive's provenance.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.nn import functional

from imgcls.training.batches import Batch
from imgcls.training.checkpoint import Progress
from imgcls.training.config import TrainConfig
from imgcls.training.distributed import World
from imgcls.training.label_filter import LabelFilter
from imgcls.training.record import write_rejections
from imgcls.training.rejections import Rejections, Row
from imgcls.training.sample_gradients import LastLayer, find_outliers
from imgcls.training.step_filter import StepFilter


class GradientFilter:
    """All filters of a run; has a state, for checkpoints.

    Args:
        network: whose gradient is filtered.
        config: which filters are on, and how strict they are.
        run: the run directory.
        names: of the training images, by index.
        classes: how many.
        world: the processes of the run, which decide alike.
    """

    def __init__(
        self,
        network: nn.Module,
        config: TrainConfig,
        *,
        run: Path,
        names: Sequence[str],
        classes: int,
        world: World,
    ) -> None:
        self.config = config
        self.names = names
        self.run = run
        self.world = world
        self.rejections = Rejections(run, world=world)
        self.steps = StepFilter(network, config)
        self.labels = LabelFilter(len(names), config, world=world)
        self.last_layer = LastLayer(network, classes=classes) if config.drop_gradients is not None else None

    def begin_step(self) -> None:
        """Comes before the forward pass, which changes a batch norm's buffers."""
        self.steps.begin_step()

    def weigh(self, batch: Batch, logits: Tensor, progress: Progress) -> Tensor:
        """Returns each image's weight in the loss, float32 (B,), whose sum over all images of the step is at most 1.

        Args:
            batch: the images, on the device of the logits.
            logits: (B, classes), of the forward pass just done.
            progress: where the run stands.
        """
        weights = self.labels.weigh(batch.indices, among=batch.among).to(logits.device)
        labels = batch.labels.to(logits.device)
        if self.labels.rate is not None:
            losses = functional.cross_entropy(logits.detach().float(), labels, reduction="none")
            self.labels.observe(losses, batch.indices)
        if self.last_layer is not None and self.config.drop_gradients is not None:
            norms = self.last_layer.measure(logits, labels, label_smoothing=self.config.label_smoothing)
            is_outlier, limit = find_outliers(norms, k=self.config.drop_gradients)
            is_outlier &= weights > 0
            weights = weights.masked_fill(is_outlier, 0.0)
            dropped = zip(batch.indices[is_outlier.cpu()].tolist(), norms[is_outlier].tolist(), strict=True)
            self.rejections.add(
                self._row(progress, "sample", index, "gradient", value, float(limit)) for index, value in dropped
            )
        return weights

    def allows(self, batch: Batch, loss: Tensor, *, progress: Progress, scaler: GradScaler) -> tuple[bool, float]:
        """Judges the step after its backward pass, and clips its gradient, from which the scale is taken off.

        Args:
            batch: the step's images.
            loss: summed over all parts and processes.
            progress: where the run stands.
            scaler: of fp16, to know whether a gradient has overflown for its scale only.

        Returns:
            Whether to take the step, and the loss.

        Raises:
            RunError: too many of the recent steps had to be skipped.
        """
        value, norm = torch.stack([loss.detach().float(), self.steps.measure()]).tolist()  # one wait for the device
        is_scaled = not math.isfinite(norm) and scaler.is_enabled() and scaler.get_scale() > 1
        # A private step is judged by its private gradient only: the loss would tell of single images.
        rejection = self.steps.judge(loss=0.0 if self.config.is_private else value, norm=norm, is_scaled=is_scaled)
        if rejection is None:
            return True, value
        self.rejections.add(
            self._row(progress, "step", index, rejection.reason, rejection.value, rejection.limit)
            for index in batch.indices.tolist()
        )
        try:
            self.steps.refuse_overspent(rejection, lr=self.config.lr)
        finally:
            self.rejections.flush()
        return False, value

    def end_epoch(self, progress: Progress) -> str:
        """Judges the labels anew, writes what was rejected into log and record, and returns a few words on it."""
        if progress.epoch == self.config.freeze_epochs:
            self.steps.forget_norms()
        changes = self.labels.end_epoch(progress.epoch)
        self.rejections.add(  # each process has found the same
            self._row(progress, "drop" if each.is_dropped else "return", each.index, "label", each.value, each.limit)
            for each in changes
            if self.world.is_main
        )
        self.rejections.flush()
        if self.world.is_main:
            write_rejections(self.run, self.rejections.summarise())
        dropped = int(self.labels.is_dropped.sum())
        return f"  {dropped:,} of {len(self.names):,} labels dropped" if dropped else ""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state of each filter and of the log."""
        return {
            "steps": self.steps.state_dict(),
            "labels": self.labels.state_dict(),
            "rejections": self.rejections.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Sets them."""
        self.steps.load_state_dict(state_dict["steps"])
        self.labels.load_state_dict(state_dict["labels"])
        self.rejections.load_state_dict(state_dict["rejections"])

    def _row(self, progress: Progress, event: str, index: int, reason: str, value: float, limit: float | None) -> Row:
        return Row(progress.epoch, progress.total_steps, event, self.names[index], reason, value, limit)
