"""TrainConfig: every choice of a training run; each field is a flag of train.py.

Order of settings: flag, environment (IMGCLS_TRAIN_LR=0.1), the file given with --config, default.
"""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from imgcls.errors import UsageError
from imgcls.training.progress import log
from imgcls.yaml_once import load_yaml
from model.errors import describe_validation_error
from model.spec import Channels, Interpolation, Sample
from model.written import Written

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]


class TrainConfig(Written, BaseSettings):
    """All choices of a run. What is None is decided from the data, and written as decided into spec.yaml."""

    model_config = SettingsConfigDict(
        env_prefix="IMGCLS_TRAIN_",
        extra="forbid",
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
    )

    data: str = Field(
        "digits", description="images: digits, a folder, a .zip, a .csv, a .jsonl, .tar shards, torchvision:CIFAR10, …"
    )
    out: Path = Field(Path("runs/latest"), description="the run directory to write")
    overwrite: bool = Field(False, description="replace a run that is already there")
    resume: bool = Field(False, description="go on from the run's last checkpoint")
    checkpoint_every: Count | None = Field(None, description="steps; default: at the end of each epoch")
    keep_checkpoints: Count = Field(2, description="how many of the last checkpoints stay")
    strict: bool = Field(False, description="stop at a corrupt, empty or unlabelled file instead of leaving it out")
    val_fraction: Fraction = Field(0.15, description="part held out for validation where the data has no val split")
    test_fraction: Fraction = Field(0.15, description="part held out for testing where the data has no test split")

    network: str = Field("simple_cnn", description="simple_cnn, whitened_cnn or timm/<name>")
    parameters: dict[str, Any] = Field(
        default_factory=dict, description='of the network, as JSON: {"widths": [32, 64]}'
    )
    weights: Path | None = Field(None, description="start from this safetensors file (the last layer may differ)")
    pretrained: bool = Field(
        False, description="start from timm's weights, from the hub; input settings default to theirs"
    )
    teacher: Path | None = Field(None, description="learn the answers of this run too (distillation)")
    teacher_weight: Annotated[float, Field(gt=0, le=1)] = Field(
        0.5, description="part of the loss that is the teacher's; the labels have the rest"
    )
    teacher_temperature: Annotated[float, Field(gt=0, le=100)] = Field(
        2.0, description="at which both networks' answers are compared"
    )
    channels: Channels | None = Field(
        None, description="1 gray, 3 RGB, 4 RGBA, more: a TIFF's bands; default: as the images are, no alpha"
    )
    ranges: list[tuple[Sample, Sample]] | None = Field(
        None, description="take bands, of which [[low, high]] become 0 and 255, for all or one each; default: measured"
    )
    size: Count | None = Field(
        None, description="side of the network's input in pixels; default: as the images are, or 224"
    )
    resize: Count | None = Field(None, description="the shorter side is resized to this before the crop; default: size")
    interpolation: Interpolation | None = Field(None, description="of the resize; default: bilinear")
    mean: list[Finite] | None = Field(
        None, description="per channel, of 0..1; default: measured on the training images"
    )
    std: list[Finite] | None = Field(None, description="per channel; default: measured on the training images")

    epochs: Count = Field(10, description="passes over the training images")
    batch_size: Count = Field(64, description="images a step")
    accumulate: Count = Field(1, description="parts of a batch that go through the network one after another")
    optimiser: Literal["sgd", "adamw", "lion", "muon"] = Field("sgd", description="timm's")
    lr: Positive = Field(0.01, description="learning rate; the peak, where it is scheduled")
    find_lr: bool = Field(False, description="print a learning rate found by a range test, and write nothing")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="of SGD and Muon")
    nesterov: bool = Field(False, description="SGD with Nesterov momentum")
    weight_decay: NotNegative = Field(0.0, description="on weights, but not on biases and norms")
    layer_decay: Share | None = Field(None, description="each layer below the last learns slower by this factor")
    schedule: Literal["constant", "cosine", "one-cycle"] = Field("constant", description="learning rate over the run")
    warmup_epochs: NotNegative = Field(0.0, description="in which the learning rate rises from a hundredth")
    ema: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        None, description="decay of a running mean of the weights, which then are the run's"
    )
    freeze_epochs: Annotated[int, Field(ge=0)] = Field(
        0, description="first epochs, in which only the last layer learns"
    )
    select: Literal["best", "last"] = Field(
        "best", description="whose weights become the run's: the best epoch's by validation accuracy, or the last's"
    )
    patience: Count | None = Field(None, description="stop after so many epochs without a better validation accuracy")
    amp: Literal["bf16", "fp16", "auto"] | None = Field(
        None, description="mixed precision; auto: bf16 where the device has instructions for it"
    )
    compile: bool = Field(False, description="torch.compile; costs minutes at the start")
    class_weights: bool = Field(False, description="weigh the loss inversely to the size of each class")
    balanced: bool = Field(False, description="draw each class equally often")
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="of the cross entropy")
    clip_norm: Positive | None = Field(None, description="clip the gradient's norm to this")
    reject_norm: Positive | None = Field(
        None, description="skip a step whose gradient norm is above median + this many MAD of the last 100"
    )
    skip_budget: Fraction = Field(0.1, description="stop where more than this part of the last 100 steps was skipped")
    noise_rate: Annotated[float, Field(gt=0, lt=1)] | Literal["auto"] | None = Field(
        None, description="drop this part of the training images, or auto, as wrongly labelled"
    )
    noise_warmup: Count = Field(5, description="epochs before the first are dropped")
    drop_gradients: Positive | None = Field(
        None, description="drop images whose gradient is above median + this many MAD of the batch"
    )
    dp_noise: Positive | None = Field(
        None, description="train privately (DP-SGD) with this noise, as a multiple of dp-clip, such as 1"
    )
    dp_epsilon: Positive | None = Field(None, description="instead: with the noise that spends this epsilon on the run")
    dp_clip: Positive = Field(1.0, description="to this norm each image's own gradient is clipped")
    dp_delta: Fraction | None = Field(
        None, description="of (epsilon, delta); default: the power of ten below 1 / training images"
    )
    flip: bool = Field(False, description="augmentation: mirror half of the images")
    vertical_flip: bool = Field(False, description="augmentation: turn half of the images upside down")
    shift: Annotated[int, Field(ge=0)] = Field(0, description="augmentation: move each image by up to this many pixels")
    crop_scale: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="augmentation: random resized crop of at least this part of each image, such as 0.08"
    )
    color_jitter: Share = Field(
        0.0, description="augmentation: vary brightness, contrast and saturation by up to this part"
    )
    auto_augment: Literal["randaugment", "trivial"] | None = Field(None, description="augmentation: torchvision's")
    erase: Share = Field(0.0, description="augmentation: random erasing, with this probability")
    mixup: NotNegative = Field(0.0, description="augmentation: alpha of mixup, such as 0.2")
    cutmix: NotNegative = Field(
        0.0, description="augmentation: alpha of CutMix, such as 1; with mixup, one or the other"
    )

    seed: Annotated[int, Field(ge=0, lt=2**32)] = Field(
        0, description="of the split, the weights, the order and the augmentation"
    )
    deterministic: bool = Field(False, description="the same bytes of weights each time, on the same kind of machine")
    device: str = Field("auto", description="auto (CUDA where present), cpu, cuda or cuda:N")
    threads: Count | None = Field(None, description="torch threads; default: torch's own choice")
    workers: Count | None = Field(None, description="that decode images; default: one a core")
    golden: Count = Field(4, description="validation images kept as the archive's golden inputs")

    @field_validator("noise_rate", mode="wrap")
    @classmethod
    def _noise_rate_is_one_of_two(cls, value: Any, read: ValidatorFunctionWrapHandler) -> Any:
        try:
            return read(value)
        except ValidationError as err:  # has a reason for each kind that it is not
            raise ValueError(f"noise_rate is {value!r}; expected auto, or a number above 0 and below 1") from err

    @model_validator(mode="after")
    def _fields_agree(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is on and momentum is 0; expected a momentum above 0, such as 0.9")
        if self.warmup_epochs and self.schedule == "one-cycle":
            raise ValueError(
                "warmup_epochs is given and schedule is one-cycle, which has its own; leave one of them off"
            )
        if (self.mixup or self.cutmix) and (self.noise_rate is not None or self.drop_gradients is not None):
            raise ValueError(
                "mixup or cutmix is given, and noise_rate or drop_gradients, which judge images unmixed; leave one off"
            )
        if self.teacher and self.drop_gradients is not None:
            raise ValueError(
                "teacher is given, and drop_gradients, which knows the gradient of the labels only; leave one off"
            )
        return self

    @model_validator(mode="after")
    def _privacy_agrees(self) -> Self:
        if self.dp_noise is not None and self.dp_epsilon is not None:
            raise ValueError("dp_noise and dp_epsilon are given, and each says how much noise there is; leave one off")
        if not self.is_private:
            if self.dp_delta is not None:
                raise ValueError("dp_delta is given without dp_noise or dp_epsilon; give one, or leave dp_delta off")
            return self
        clashes: dict[str, tuple[object, str]] = {
            "mixup": (self.mixup, "which gives an image a part in others' gradients"),
            "cutmix": (self.cutmix, "which gives an image a part in others' gradients"),
            "teacher": (self.teacher, "whose answers may tell of the images that it has learnt"),
            "accumulate": (self.accumulate > 1, "whose parts Opacus would clip apart"),
            "noise_rate": (self.noise_rate, "which judges single images by their loss"),
            "drop_gradients": (self.drop_gradients, "which judges single images by their gradient"),
            "balanced": (self.balanced, "as each image must be drawn with the same chance"),
            "class_weights": (self.class_weights, "which are counted from the images"),
            "compile": (self.compile, "which Opacus' hooks do not go through"),
            "amp": (self.amp, "in which gradients of single images are too coarse to clip"),
            "deterministic": (self.deterministic, "which would let the noise be drawn again and taken off"),
        }
        for name, (is_given, reason) in clashes.items():
            if is_given:
                raise ValueError(f"{name} does not go together with dp_noise or dp_epsilon: {reason}; leave one off")
        return self

    def find_idle(self) -> list[str]:
        """Returns a reason for each setting that another one leaves without effect; a default is no reason.

        They are no error of the configuration itself, as runs of earlier versions have been trained with such.
        """
        default = {name: field.default for name, field in TrainConfig.model_fields.items()}
        found = {
            f"nesterov is on and optimiser is {self.optimiser}; nesterov is for sgd only; leave one of them off": (
                self.nesterov and self.optimiser != "sgd"
            ),
            f"momentum is {self.momentum:g} and optimiser is {self.optimiser}, which has none; leave momentum off": (
                self.momentum != default["momentum"] and self.optimiser in {"adamw", "lion"}
            ),
            f"warmup_epochs is {self.warmup_epochs:g} and epochs is {self.epochs}, so the learning rate never gets to "
            "lr; expected less warmup_epochs than epochs": self.warmup_epochs >= self.epochs,
            f"pretrained is on and network is {self.network}, of which timm has no weights; leave pretrained off": (
                self.weights is not None and self.pretrained and not self.network.startswith("timm/")
            ),
            f"noise_warmup is {self.noise_warmup} and noise_rate is not given, so no image is ever dropped; give "
            "noise_rate, or leave noise_warmup off": (
                self.noise_warmup != default["noise_warmup"] and self.noise_rate is None
            ),
            f"noise_warmup is {self.noise_warmup} and epochs is {self.epochs}, so noise_rate judges no label; expected "
            "at most as much noise_warmup as epochs": (self.noise_rate is not None and self.noise_warmup > self.epochs),
            f"dp_clip is {self.dp_clip:g} without dp_noise or dp_epsilon, so training is not private; give one, "
            "or leave dp_clip off": self.dp_clip != default["dp_clip"] and not self.is_private,
            "teacher_weight or teacher_temperature is given without a teacher; give teacher, or leave them off": (
                self.teacher is None and any(getattr(self, each) != default[each] for each in _OF_TEACHER)
            ),
            "teacher_weight is 1, and class_weights or label_smoothing is given, which are for the labels' part of the "
            "loss; expected a teacher_weight below 1": (
                self.teacher_weight == 1 and (self.class_weights or self.label_smoothing > 0)
            ),
        }
        return [reason for reason, is_idle in found.items() if is_idle]

    @property
    def is_private(self) -> bool:
        """Whether training is differentially private."""
        return self.dp_noise is not None or self.dp_epsilon is not None

    def dump(self) -> str:
        """Returns the configuration as YAML; `train.py --config` repeats the run from it."""
        fields = self.model_dump(mode="json", exclude={"overwrite", "resume"})
        return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)


def read_config(arguments: Sequence[str], *, description: str) -> TrainConfig:
    """Reads the configuration from flags, environment and the file given with --config.

    Raises:
        UsageError: an unknown key, or a value out of range, in any of them.
        SystemExit: --help, or a flag that does not exist (argparse prints why; exit status 2).
    """
    parser = _make_parser(formatter_class=HelpFormatter, description=description)
    file, _ = _make_parser(add_help=False).parse_known_args(arguments)
    from_file = _read_file(file.config) if file.config else {}

    class Sources(TrainConfig):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            flags = CliSettingsSource[Any](settings_cls, root_parser=parser, cli_parse_args=list(arguments))
            return flags, env_settings, InitSettingsSource(settings_cls, from_file)

    try:
        config = TrainConfig.model_construct(**Sources().model_dump())
    except ValidationError as err:
        where = f"settings ({file.config}, flags and environment)" if file.config else "settings"
        raise UsageError(describe_validation_error(err, where=where)) from err
    except SettingsError as err:
        raise UsageError(_describe_unread(err, arguments)) from err
    _refuse_idle(config, from_file)
    return config


def _refuse_idle(config: TrainConfig, from_file: dict[str, Any]) -> None:
    """Refuses settings without effect; a file that repeats a run, and a run that goes on, are warned of their own."""
    try:
        repeated = TrainConfig(**from_file).find_idle() if from_file else []
    except ValidationError:  # of what the flags have mended
        repeated = []
    for reason in config.find_idle():
        if reason not in repeated and not config.resume:
            raise UsageError(f"settings: {reason}")
        log(f"warning: {reason}")
    if config.freeze_epochs and not (config.weights or config.pretrained or config.resume):
        log("warning: freeze_epochs is given without weights or pretrained: what is frozen has learnt nothing")


def _describe_unread(error: SettingsError, arguments: Sequence[str]) -> str:
    """Says what was got where a flag or the environment holds no JSON."""
    name = next((name for name in _JSON if re.search(rf"\b{name}\b", str(error))), None)
    if name is None:
        return f"{' '.join(str(error).split())}; lists and --parameters are JSON"
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{name}")
    given, where = getattr(parser.parse_known_args(arguments)[0], name), f"--{name}"
    if given is None:
        where = f"IMGCLS_TRAIN_{name.upper()}"
        given = os.environ.get(where)
    kind = "an object" if _JSON[name].startswith("{") else "a list"
    return f"{where} is {given!r}; expected {kind} in JSON, such as '{_JSON[name]}'"


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """One line for most flags, so that all of them fit on two screens."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30, width=120)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        text = super()._format_action_invocation(action)
        text = re.sub(r"list\[.*", "JSON", text)
        return re.sub(r", --no-\S+|str$|int$|float$|Path$", lambda found: _METAVARS.get(found[0], ""), text)

    def _expand_help(self, action: argparse.Action) -> str:
        return re.sub(r" \(default( factory)?: (null|False|dict)\)$", "", super()._expand_help(action))


_JSON = {"parameters": '{"widths": [32, 64]}', "ranges": "[[0, 4095]]", "mean": "[0.5]", "std": "[0.25]"}  # of each
_OF_TEACHER = ("teacher_weight", "teacher_temperature")
_METAVARS = {"str": "TEXT", "int": "N", "float": "X", "Path": "PATH"}


def _make_parser(**options: Any) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="train.py", usage="train.py [--config FILE] [--FLAG VALUE …]", **options)
    text = "YAML with any of these settings, such as a run's train_config.yaml"
    parser.add_argument("--config", type=Path, metavar="FILE", help=text)
    return parser


def _read_file(path: Path) -> dict[str, Any]:
    try:
        fields = load_yaml(path.read_bytes())
    except (OSError, yaml.YAMLError) as err:
        raise UsageError(f"{path}: cannot be read as YAML: {' '.join(str(err).split())}") from err
    if not isinstance(fields, dict):
        raise UsageError(f"{path}: got {type(fields).__name__}; expected a mapping of settings, such as lr: 0.01")
    return fields
