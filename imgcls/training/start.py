"""What is decided before the first step: device, threads, the spec, and the weights to start from."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, cast, get_args

import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor, nn

from imgcls.data.images import ImageSet
from imgcls.errors import RunError, UsageError
from imgcls.training.bands import check_depth, decide_ranges, measure_bands
from imgcls.training.checkpoint import list_checkpoints
from imgcls.training.config import TrainConfig
from imgcls.training.distributed import World, count_restarts
from imgcls.training.progress import log
from imgcls.training.weights import load_fitting
from model.errors import ImageError, describe_validation_error
from model.images import decode_image
from model.network import build_network
from model.normalise import Normalise
from model.spec import Channels, Interpolation, ModelSpec
from model.whitened_cnn import WhitenedCNN

if TYPE_CHECKING:
    from timm.models import PretrainedCfg

PROBED = 64  # images looked at to decide channels and size
STATISTICS_IMAGES = 10_000
COUNTED_AT_ONCE = 256  # images
WHITENED_AT_ONCE = 64  # images, as their patches take 32 times the memory of their pixels
PHOTO_SIZE = 224
INTERPOLATION: Interpolation = "bilinear"
BF16_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "sve_bf16")  # of x86-64 and of Arm
SMALL = 96  # images up to this side are trained at their own size


def choose_device(name: str) -> torch.device:
    """Returns the device of that name; "auto" is CUDA where torch can use it, and the CPU elsewhere.

    Raises:
        UsageError: the name is unknown, or CUDA is asked for and cannot be used.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as err:
        raise UsageError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N") from err
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"device is {name!r}; expected auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"device is {name!r}, but torch {torch.__version__} can use {torch.cuda.device_count()} CUDA devices here; "
            "use --device cpu"
        )
    return device


def set_threads(config: TrainConfig) -> TrainConfig:
    """Sets torch's threads; a deterministic run notes how many, as sums come out otherwise with another number."""
    if config.threads:
        torch.set_num_threads(config.threads)
    return config.model_copy(update={"threads": torch.get_num_threads()}) if config.deterministic else config


def with_precision(config: TrainConfig) -> TrainConfig:
    """Decides `amp: auto`: bf16 on a device that has instructions for it; others emulate it, slower than float32."""
    if config.amp != "auto":
        return config
    return config.model_copy(update={"amp": "bf16" if has_bf16(choose_device(config.device)) else None})


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 by itself."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return any(torch.cpu.get_capabilities().get(name) for name in BF16_INSTRUCTIONS)


def with_restart(config: TrainConfig, world: World) -> TrainConfig:
    """Lets a run whose processes torchrun had to start anew go on from its last checkpoint, where it wrote one.

    The main process looks, as the run directory may be on its node only.
    """
    if count_restarts() and world.ask_main(lambda: bool(list_checkpoints(config.out))):
        return config.model_copy(update={"resume": True})
    return config


def with_pretraining(config: TrainConfig) -> TrainConfig:
    """Returns the configuration with the input that timm's weights were trained on, where it leaves that open.

    Weights see what they have learnt to see only at their own size, crop, mean and standard deviation.
    """
    cfg = _find_pretraining(config)
    if cfg is None:
        return config
    size = config.size or cfg.input_size[-1]
    sees_colours = config.channels in {None, 3} and config.ranges is None
    own = {
        "size": size,
        "resize": math.floor(size / cfg.crop_pct),
        "interpolation": cfg.interpolation if cfg.interpolation in get_args(Interpolation) else INTERPOLATION,
        "mean": list(cfg.mean) if sees_colours else None,
        "std": list(cfg.std) if sees_colours else None,
        "channels": 3 if sees_colours else None,
    }
    return config.model_copy(update={name: value for name, value in own.items() if getattr(config, name) is None})


def _find_pretraining(config: TrainConfig) -> PretrainedCfg | None:
    if not (config.pretrained and config.network.startswith("timm/")):
        return None
    from timm.models import get_pretrained_cfg  # here, because it costs a second

    return cast(
        "PretrainedCfg | None", get_pretrained_cfg(config.network.removeprefix("timm/"), allow_unregistered=True)
    )


def decide_spec(config: TrainConfig, images: ImageSet) -> ModelSpec:
    """Returns the spec of the run; what the configuration leaves open is read off the first training images.

    Mean and standard deviation are still 0 and 1 where they are to be measured: `with_statistics` fills them in.

    Raises:
        UsageError: mean, std or ranges do not have one value a channel, resize is smaller than size, no file holds
            the bands that were asked for, or 16-bit pictures are all but black.
    """
    files = _read_some(images)
    ranges = decide_ranges(config, files)
    if ranges is None and (warning := check_depth(config, files)):
        log(f"warning: {warning}")
    pictures = _open_all(files) if ranges is None else []
    sizes = [picture.size for picture in pictures] if ranges is None else measure_bands(files)
    channels: Channels = len(ranges) if ranges else config.channels or _common_channels(pictures)
    size = config.size or _common_size(sizes)
    try:
        return ModelSpec(
            network=config.network,
            parameters=config.parameters,
            channels=channels,
            ranges=ranges,
            size=size,
            resize=config.resize or size,
            interpolation=config.interpolation or INTERPOLATION,
            mean=tuple(config.mean or [0.0] * channels),
            std=tuple(config.std or [1.0] * channels),
            classes=images.classes,
        )
    except ValidationError as err:
        raise UsageError(describe_validation_error(err, where="settings")) from err


def with_statistics(spec: ModelSpec, config: TrainConfig, pixels: Tensor) -> ModelSpec:
    """Returns the spec with mean and std of the pixels, uint8 (N, C, H, W), where the configuration gives none.

    A private run measures nothing: what it publishes would tell of its images.
    """
    if config.is_private:
        middle = [0.5] * spec.channels
        return spec.model_copy(update={"mean": tuple(config.mean or middle), "std": tuple(config.std or middle)})
    mean, std = _measure(_choose_some(pixels))
    return spec.model_copy(
        update={
            "mean": tuple(config.mean or [round(value, 4) for value in mean]),
            "std": tuple(config.std or [round(value, 4) for value in std]),
        }
    )


def start_network(spec: ModelSpec, config: TrainConfig, pixels: Tensor) -> nn.Module:
    """Builds the spec's network, with fresh weights, those of a file, or timm's from the hub.

    Args:
        spec: of the network.
        config: says which weights.
        pixels: of training images, uint8 (N, C, H, W), for a network of which a part is computed from them.

    Raises:
        SpecError: the network cannot be built.
        RunError: the weights cannot be had, or hardly any of them fits.
        UsageError: --pretrained for a network that is not timm's.
    """
    network = build_network(spec)
    if isinstance(network, WhitenedCNN):
        network.whiten(map(Normalise(spec), torch.split(_choose_some(pixels), WHITENED_AT_ONCE)))
    if config.weights:
        load_fitting(network, config.weights)
    elif config.pretrained:
        network = _load_pretrained(spec)
    return network


def _choose_some(pixels: Tensor) -> Tensor:
    """Returns at most STATISTICS_IMAGES of them: not the first ones, as splits lie sorted by class."""
    return pixels[:: math.ceil(len(pixels) / STATISTICS_IMAGES)]


def _measure(pixels: Tensor) -> tuple[list[float], list[float]]:
    """Returns each channel's mean and standard deviation, of 0 to 1; counted, so that no copy in floats is made."""
    counts = torch.zeros((pixels.shape[1], 256), dtype=torch.float64)
    for chunk in torch.split(pixels, COUNTED_AT_ONCE):
        for channel, values in enumerate(chunk.unbind(1)):
            counts[channel] += values.flatten().bincount(minlength=256)
    levels, number = torch.arange(256, dtype=torch.float64) / 255, counts[0].sum()
    mean = (counts * levels).sum(1) / number
    variance = (counts * (levels - mean[:, None]).square()).sum(1) / (number - 1)
    return mean.tolist(), variance.sqrt().clamp(min=1e-3).tolist()


def _load_pretrained(spec: ModelSpec) -> nn.Module:
    import timm

    if not spec.network.startswith("timm/"):
        raise UsageError(f"--pretrained is for timm networks; network is {spec.network!r}")
    name = spec.network.removeprefix("timm/")
    try:
        network: nn.Module = timm.create_model(
            name, pretrained=True, in_chans=spec.channels, num_classes=len(spec.classes), **spec.parameters
        )
    except (OSError, RuntimeError, ValueError) as err:  # the hub's errors are OSErrors
        reason = str(err).splitlines()[0]
        raise RunError(
            f"timm's weights of {name} cannot be fetched ({reason}); give a local file with --weights too"
        ) from err
    return network


def _read_some(images: ImageSet) -> list[bytes]:
    step = max(1, len(images.samples) // PROBED)
    files = []
    for sample in images.samples[::step]:
        with suppress(OSError):
            files.append(sample.read())
    return files


def _open_all(files: Sequence[bytes]) -> list[Image.Image]:
    opened: list[Image.Image] = []
    for data in files:
        with suppress(ImageError):
            decode_image(data, channels=3)  # refuses what training will refuse
            opened.append(Image.open(io.BytesIO(data)))
    return opened


def _common_channels(pictures: Sequence[Image.Image]) -> Channels:
    return 1 if pictures and all(image.mode in {"1", "L", "LA", "I;16", "I;16B"} for image in pictures) else 3


def _common_size(sizes: Sequence[tuple[int, int]]) -> int:
    if not sizes:
        return PHOTO_SIZE
    side, _ = Counter(map(min, sizes)).most_common(1)[0]
    return side if max(map(max, sizes)) <= SMALL else PHOTO_SIZE
