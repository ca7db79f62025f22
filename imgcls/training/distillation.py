"""Distillation: the network also learns the answers of a trained one, its teacher.

An image's loss becomes (1 - w) · cross entropy + w · T² · KL(teacher at T ‖ network at T), with the teacher's weight w
and the temperature T (Hinton et al. 2015, arXiv:1503.02531). The teacher sees the very pixels that the network sees,
augmented and mixed, as Beyer et al. 2022 (arXiv:2106.05237) advise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from handler.integrity import hash_file
from imgcls.data.digests import Digests, Fingerprint, make_fingerprint
from imgcls.data.images import DataSource
from imgcls.errors import UsageError
from imgcls.training.config import TrainConfig
from imgcls.training.progress import log
from imgcls.training.record import RECORD_FILE, SplitRecord, read_record
from model.network import load_network
from model.normalise import Normalise
from model.spec import SPEC_FILE, WEIGHTS_FILE, ModelSpec, read_spec


class Teacher:
    """A trained network whose answers are learnt; has a state, so that a run is resumed with the same one only.

    Args:
        network: the teacher's.
        spec: the teacher's.
        student: the spec of the network that learns.
        config: its teacher_weight and teacher_temperature.
        sha256: of the teacher's weights.
        device: where it answers.

    Raises:
        UsageError: it does not know all classes, or was trained on another kind of image.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        *,
        student: ModelSpec,
        config: TrainConfig,
        sha256: str,
        device: torch.device,
    ) -> None:
        _refuse_other_images(spec, student, config)
        self.network = network.eval().requires_grad_(False).to(device).to(memory_format=torch.channels_last)
        self.size = spec.size
        self.weight, self.temperature = config.teacher_weight, config.teacher_temperature
        self.places = torch.tensor([spec.classes.index(name) for name in student.classes], device=device)
        # From the student's normalised pixels to the teacher's: an affine map, so it holds for mixed images too.
        own, other = Normalise(spec).to(device), Normalise(student).to(device)
        self.scale = own.scale / other.scale
        self.shift = own.shift - other.shift * self.scale
        self.run, self.sha256 = config.teacher, sha256

    def blend(self, losses: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """Returns each image's loss with the teacher's part in it, float32 (B,).

        Args:
            losses: of the labels, float32 (B,).
            logits: of the network that learns, (B, classes).
            images: as that network sees them, float32 (B, C, H, W), normalised.
        """
        t = self.temperature
        taught = functional.log_softmax(self.answer(images).float() / t, dim=1)
        learnt = functional.log_softmax(logits.float() / t, dim=1)
        divergence = functional.kl_div(learnt, taught, reduction="none", log_target=True).sum(1)
        return (1 - self.weight) * losses + self.weight * t * t * divergence

    @torch.no_grad()
    def answer(self, images: Tensor) -> Tensor:
        """The student's images, (B, C, H, W) -> the teacher's logits for the student's classes, (B, classes)."""
        images = torch.addcmul(self.shift, images, self.scale)
        if images.shape[-1] != self.size:
            images = functional.interpolate(images, size=self.size, mode="bilinear", antialias=True)
        logits: Tensor = self.network(images.contiguous(memory_format=torch.channels_last))
        return logits[:, self.places]

    def state_dict(self) -> dict[str, Any]:
        """Returns which teacher it is."""
        return {"sha256": self.sha256}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes note of nothing.

        Raises:
            UsageError: the run was taught by another one.
        """
        if state_dict["sha256"] != self.sha256:
            raise UsageError(
                f"--teacher {self.run} has the weights {self.sha256[:12]}; the run was taught by "
                f"{state_dict['sha256'][:12]}; give --teacher the run that has those, or give another --out"
            )


def check_teacher(config: TrainConfig) -> None:
    """Raises UsageError where `--teacher` names no other run; comes before the images are read, which may take long."""
    if config.teacher is None:
        return
    if missing := [name for name in (SPEC_FILE, WEIGHTS_FILE) if not (config.teacher / name).is_file()]:
        raise UsageError(
            f"--teacher {config.teacher}: is no run directory, {missing[0]} is not in it; make one with "
            f"python train.py --out {config.teacher}"
        )
    if config.teacher.resolve() == config.out.resolve():
        raise UsageError(f"--teacher and --out are both {config.out}; give another --out, so that the teacher stays")


def open_teacher(
    config: TrainConfig, student: ModelSpec, source: DataSource, digests: Digests, *, device: torch.device
) -> Teacher | None:
    """Opens the run that `--teacher` names, or returns None where none is named.

    Raises:
        UsageError: its classes or its kind of images are not those of the run to train.
        SpecError, WeightsError, RunError: it cannot be read.
    """
    if config.teacher is None:
        return None
    spec, weights = read_spec(config.teacher / SPEC_FILE), config.teacher / WEIGHTS_FILE
    network = load_network(spec, weights)
    if config.compile:
        network.compile()
    teacher = Teacher(network, spec, student=student, config=config, sha256=hash_file(weights), device=device)
    if has_other_splits(config.teacher, source, digests):
        log(
            f"warning: {config.teacher} seems to have been trained on other splits of this data, so that it has learnt "
            "images that validate or test this run; give that run's --seed, --val-fraction and --test-fraction"
        )
    return teacher


def has_other_splits(teacher: Path, source: DataSource, digests: Digests) -> bool:
    """Whether a run's record tells of as many images of each class, of which others were held out."""
    if not (teacher / RECORD_FILE).is_file():
        return False
    theirs = read_record(teacher / RECORD_FILE).data.splits
    ours = {name: make_fingerprint(images, digests[name]) for name, images in source.splits.items()}
    if _count_classes(theirs.values()) != _count_classes(ours.values()):
        return False
    known = [name for name in ours if name != "train" and name in theirs and theirs[name].sha256]
    return any(theirs[name].sha256 != ours[name].sha256 for name in known)


def _count_classes(splits: Iterable[SplitRecord | Fingerprint]) -> Counter[str]:
    return sum((Counter(split.classes) for split in splits), Counter())


def _refuse_other_images(spec: ModelSpec, student: ModelSpec, config: TrainConfig) -> None:
    if unknown := [name for name in student.classes if name not in spec.classes]:
        raise UsageError(
            f"--teacher {config.teacher} does not know {len(unknown)} of the {len(student.classes)} classes, such as "
            f"{unknown[0]!r}; it knows {len(spec.classes)}, such as {spec.classes[0]!r}; train one on this data"
        )
    if (spec.channels, spec.ranges) != (student.channels, student.ranges):
        raise UsageError(
            f"--teacher {config.teacher} takes {_describe_images(spec)}, and the images are "
            f"{_describe_images(student)}; give both runs the same --channels and --ranges"
        )


def _describe_images(spec: ModelSpec) -> str:
    ranges = f" of ranges {[list(each) for each in spec.ranges]}" if spec.ranges else ""
    return f"{spec.channels}-channel images{ranges}"
