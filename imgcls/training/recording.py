"""Observes what a run's train_record.json states, just before the run starts."""

from dataclasses import asdict
from platform import python_version

import torch

from handler.integrity import hash_file
from imgcls import __version__
from imgcls.data.digests import Digests, make_fingerprint
from imgcls.data.images import DataSource
from imgcls.training.config import TrainConfig
from imgcls.training.record import (
    DataRecord,
    ParentRecord,
    SplitRecord,
    TrainRecord,
    describe_code,
    describe_source,
    find_versions,
)
from model.spec import WEIGHTS_FILE

CODE = ("imgcls", "model", "train.py")
LIBRARIES = ("numpy", "opacus", "pillow", "safetensors", "scikit-learn", "timm", "torch", "torchvision")


def make_record(config: TrainConfig, source: DataSource, digests: Digests, *, device: torch.device) -> TrainRecord:
    """Describes the run that is about to start; `digests` are those of `hash_source`.

    Call it before `write_setup`: the weights to start from may lie in the run that is overwritten.
    """
    return TrainRecord(
        code=describe_code(CODE),
        data=DataRecord(
            source=describe_source(config.data),
            splits={
                name: SplitRecord(**asdict(make_fingerprint(images, digests[name])))
                for name, images in source.splits.items()
            },
        ),
        seed=config.seed,
        device=device.type,
        parent=_describe_parent(config),
        teacher=_describe_teacher(config),
        versions={"python": python_version(), "imgcls": __version__, **find_versions(LIBRARIES)},
    )


def _describe_parent(config: TrainConfig) -> ParentRecord | None:
    if config.weights:
        return ParentRecord(name=config.weights.name, sha256=hash_file(config.weights))
    if not config.pretrained:
        return None
    from timm.models import get_pretrained_cfg  # here, because it costs a second

    cfg = get_pretrained_cfg(config.network.removeprefix("timm/"), allow_unregistered=True)
    return ParentRecord(name=f"timm/{cfg.architecture}.{cfg.tag}" if cfg and cfg.tag else config.network)


def _describe_teacher(config: TrainConfig) -> ParentRecord | None:
    if config.teacher is None:
        return None
    return ParentRecord(name=config.teacher.resolve().name, sha256=hash_file(config.teacher / WEIGHTS_FILE))
