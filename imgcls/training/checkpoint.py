"""Checkpoints: all that decides how a run goes on, so that one that is resumed ends with the same weights, bit for bit.

    checkpoints/00000120.pt   after 120 steps; the last few are kept, and the newest that can be read is resumed

A checkpoint holds the state dict of each part (network, optimiser, schedule), where the run stands, all random states
and the configuration. It is written under a temporary name and renamed. It is read as tensors and plain values only,
never as code, and is never packed.
"""

import io
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from imgcls.errors import RunError, UsageError
from imgcls.files import write_atomic
from imgcls.training.config import TrainConfig
from imgcls.training.distributed import World
from imgcls.training.progress import log
from imgcls.training.randomness import capture_random_states, restore_random_states
from model.spec import SPEC_FILE, ModelSpec, read_spec

CHECKPOINTS_FOLDER = "checkpoints"
EARLIER_FILE = "checkpoint.pt"  # of versions that could go on from the end of an epoch only
FORMAT = 2

# What may be another in the rest of a run: it does not decide the weights, or the spec is compared instead.
_FREE = {"data", "out", "overwrite", "resume", "strict", "teacher", "weights", "pretrained"}
_FREE |= {"device", "threads", "workers", "golden", "deterministic", "checkpoint_every", "keep_checkpoints", "epochs"}
_FREE |= {
    "accumulate",
    "patience",
    "find_lr",
    "compile",
    "network",
    "parameters",
    "channels",
    "ranges",
    "size",
    "resize",
    "interpolation",
    "mean",
    "std",
}


class Part(Protocol):
    """What has a state to keep: a network, an optimiser, a schedule."""

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, as tensors and plain values."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Sets the state."""


@dataclass(frozen=True)
class Epoch:
    """One row of history.csv; losses are means a sample, accuracies lie in 0..1."""

    epoch: int
    lr: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    images_per_s: float


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        steps_per_epoch: of the run.
        history: the epochs that are done.
        step: how many steps of the epoch under way are done.
        loss_sum: over the images of these steps.
        right: how many of these images were classified right.
        seen: how many images these were.
    """

    steps_per_epoch: int
    history: list[Epoch] = field(default_factory=list)
    step: int = 0
    loss_sum: float = 0.0
    right: int = 0
    seen: int = 0

    @property
    def epoch(self) -> int:
        """The epoch under way, counted from 1."""
        return len(self.history) + 1

    @property
    def total_steps(self) -> int:
        """Steps since the run began."""
        return len(self.history) * self.steps_per_epoch + self.step

    def is_better(self, epoch: Epoch) -> bool:
        """Whether an epoch's validation accuracy is the highest so far."""
        return epoch.val_accuracy > max((row.val_accuracy for row in self.history), default=-1.0)

    def is_stale(self, patience: int | None) -> bool:
        """Whether the best validation accuracy is at least that many epochs old; never without a patience."""
        accuracies = [row.val_accuracy for row in self.history]
        if patience is None or not accuracies:
            return False
        return len(accuracies) - 1 - accuracies.index(max(accuracies)) >= patience

    @property
    def train_loss(self) -> float:
        """Mean over the images of the epoch's steps so far; NaN where none counts."""
        return self.loss_sum / self.seen if self.seen else math.nan

    @property
    def train_accuracy(self) -> float:
        """Over the same images."""
        return self.right / self.seen if self.seen else math.nan

    def add_step(self, *, loss: float, right: int, images: int, is_counted: bool) -> None:
        """Adds a step, and its images unless it was skipped; `loss` is the mean over its images."""
        self.step += 1
        if is_counted:
            self.loss_sum += loss * images
            self.right += right
            self.seen += images

    def end_epoch(self, epoch: Epoch) -> None:
        """Adds a finished epoch; the next one begins."""
        self.history.append(epoch)
        self.step, self.loss_sum, self.right, self.seen = 0, 0.0, 0, 0


class Checkpoints:
    """The checkpoints of one run.

    Args:
        run: the run directory.
        config: of the run.
        parts: what has a state, by name; each is saved and restored, None is a part that the run does not have.
        world: the processes of the run; the main one writes and reads.
    """

    def __init__(self, run: Path, config: TrainConfig, parts: Mapping[str, Part | None], *, world: World) -> None:
        self.world = world
        self.folder = run / CHECKPOINTS_FOLDER
        self.config = config
        self.parts = {name: part for name, part in parts.items() if part is not None}

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint and removes those that are older than the last `config.keep_checkpoints`.

        All processes must call it, as the filter's log and the random states are those of all.
        """
        state = {
            "format": FORMAT,
            "config": self.config.model_dump(mode="json"),
            "progress": asdict(progress),
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "random": self.world.gather(capture_random_states()),
        }
        if not self.world.is_main:
            return
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.folder.mkdir(exist_ok=True)
        write_atomic(self.folder / f"{progress.total_steps:08}.pt", buffer.getvalue())
        for old in list_checkpoints(self.folder.parent)[self.config.keep_checkpoints :]:
            old.unlink()

    def restore(self, *, spec: ModelSpec, steps_per_epoch: int) -> Progress:
        """Sets all parts and random states to those of the newest checkpoint; returns where it stands.

        Raises:
            RunError: none can be read, or it is of a run that was set up otherwise.
            UsageError: it is of a run with other settings.
            SpecError: the run's spec cannot be read.
        """
        state = self.world.ask_main(lambda: self._read(spec=spec, steps_per_epoch=steps_per_epoch))
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
            self._restore_random(state["random"])
            history = [Epoch(**row) for row in state["progress"].pop("history")]
            return Progress(history=history, **state["progress"])
        except (KeyError, TypeError, ValueError, RuntimeError) as err:
            raise RunError(f"{self.folder}: does not fit the run: {_say(err)}; train again with --overwrite") from err

    def _read(self, *, spec: ModelSpec, steps_per_epoch: int) -> dict[str, Any]:
        state = read_newest(self.folder.parent)
        for half_written in self.folder.parent.rglob(".*.tmp"):  # when it was killed
            half_written.unlink()
        self._refuse_other(state, spec=spec, steps_per_epoch=steps_per_epoch)
        return state

    def _restore_random(self, states: list[dict[str, Any]]) -> None:
        """Another number of processes than before goes on from new states, and so not to the bit."""
        if len(states) == self.world.size:
            restore_random_states(states[self.world.rank])
        else:
            log(f"warning: the run had {len(states)} processes, now {self.world.size}: dropout draws anew")

    def _refuse_other(self, state: dict[str, Any], *, spec: ModelSpec, steps_per_epoch: int) -> None:
        run = self.folder.parent
        now, then = self.config.model_dump(mode="json"), state["config"]
        decisive = set(now) - _FREE
        if (then.get("teacher") is None) != (now["teacher"] is None):
            decisive.add("teacher")  # which one it is, its part tells
        for name in sorted(decisive):
            earlier = then.get(name, TrainConfig.model_fields[name].default)
            if now[name] != earlier:
                raise UsageError(f"{run}: was trained with --{_flag(name)} {earlier}, now {now[name]}; {_repeat(run)}")
        if now["epochs"] != then["epochs"] and now["schedule"] != "constant":
            raise UsageError(
                f"{run}: its {now['schedule']} schedule was laid out for {then['epochs']} epochs, now {now['epochs']}; "
                f"only a constant schedule can go on for more; {_repeat(run)}"
            )
        before = read_spec(run / SPEC_FILE)
        if changed := [name for name in ModelSpec.model_fields if not _is_same(name, before, spec)]:
            raise RunError(
                f"{run}: was trained with another {', '.join(changed)} than the settings and the data give now; "
                f"resume with --config {run}/train_config.yaml, or give another --out"
            )
        if (earlier := state["progress"]["steps_per_epoch"]) != steps_per_epoch:
            raise RunError(
                f"{run}: had {earlier} steps an epoch, now {steps_per_epoch}, as there are other training images; "
                "give the same data, or another --out"
            )


def list_checkpoints(run: Path) -> list[Path]:
    """Returns the checkpoints of a run, the newest first."""
    return sorted((run / CHECKPOINTS_FOLDER).glob("*.pt"), key=lambda path: path.name, reverse=True)


def read_newest(run: Path) -> dict[str, Any]:
    """Reads the newest checkpoint that can be read; says which ones cannot.

    Raises:
        RunError: none can.
    """
    found = list_checkpoints(run)
    for path in found:
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
            if state["format"] != FORMAT:
                raise ValueError(f"its format is {state['format']!r}; expected {FORMAT}")
            return state
        except Exception as err:  # torch's readers raise anything on bytes that are no checkpoint
            reason = f"{path}: cannot be read: {_say(err)}"
            if path == found[-1]:
                raise RunError(f"{reason}; train again with --overwrite") from err
            log(f"warning: {reason}; going on from the one before")
    if (run / EARLIER_FILE).exists():
        raise RunError(
            f"{run / EARLIER_FILE}: is of an earlier version and does not hold all that decides how the run goes on; "
            f"train again with --overwrite, or start from its weights with --weights {run}/weights.safetensors"
        )
    raise RunError(f"{run}: has no checkpoint to resume from; leave --resume off")


def _is_same(name: str, one: ModelSpec, other: ModelSpec) -> bool:
    before, now = getattr(one, name), getattr(other, name)
    if name == "temperature":  # fitted after training; evaluate and build refuse it for weights that have changed
        return True
    if name in {"mean", "std"}:  # measured, where not given: other machines sum in another order
        return all(math.isclose(a, b, abs_tol=0.001) for a, b in zip(before, now, strict=False))
    return bool(before == now)


def _say(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _flag(name: str) -> str:
    return name.replace("_", "-")


def _repeat(run: Path) -> str:
    return f"resume with --config {run}/train_config.yaml, or give another --out"
