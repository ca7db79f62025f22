"""What an engine is: the interface of every way to run a network."""

import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from model.engines.kinds import EngineKind
from model.errors import EngineError
from model.spec import ModelSpec

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]


class Engine(ABC):
    """One network on one device, ready to answer one caller at a time."""

    def __init__(self, kind: EngineKind, spec: ModelSpec, *, device: str) -> None:
        self.kind = kind
        self.spec = spec
        self.device = device

    @classmethod
    @abstractmethod
    def load(cls, file: Path, spec: ModelSpec, *, kind: EngineKind, device: str, threads: int | None = None) -> Self:
        """Loads an engine.

        Args:
            file: the weights, an ONNX model or a compiled package, as the engine wants.
            spec: of the network.
            kind: runtime and precision.
            device: "cpu", "cuda" or "cuda:N".
            threads: that one batch may use; None leaves the runtime's choice.

        Raises:
            EngineError: the file or the runtime is missing, or cannot be used here.
            WeightsError: of the engines that read the weights.
        """

    @abstractmethod
    def run(self, pixels: Pixels) -> Logits:
        """uint8 (B, C, H, W) -> float32 logits (B, classes), an array of the caller's own; B is at least 1."""

    @abstractmethod
    def count_threads(self) -> int:
        """Returns the threads that one batch uses, as the runtime reports them."""

    def warm_up(self, *, batch_sizes: Iterable[int] = (1,)) -> None:
        """Runs batches of zeros, so that no request pays for what a runtime prepares at its first batch of a size."""
        for size in batch_sizes:
            self.run(np.zeros((size, self.spec.channels, self.spec.size, self.spec.size), np.uint8))

    def describe(self) -> dict[str, Any]:
        """Returns what an operator asks for: engine, precision, device, threads and the runtime's version."""
        return {
            "engine": self.kind.name,
            "precision": self.kind.precision,
            "device": self.device,
            "threads": self.count_threads(),
            "runtime": self.version(),
        }

    @classmethod
    @abstractmethod
    def version(cls) -> str:
        """Returns the runtime and its version, such as "onnxruntime 1.22.0"."""


def refuse_missing(file: Path, *, kind: EngineKind) -> None:
    """Raises EngineError where an engine's file is not there."""
    if not file.is_file():
        raise EngineError(
            f"engine {kind.name}: its file {file} is not there; build the archive again with --engines {kind.name}"
        )


def describe_failure(kind: EngineKind, what: str, error: Exception) -> str:
    """Returns one line on a runtime's failure: runtimes raise anything, on many lines."""
    text = " ".join(str(error).split()) or type(error).__name__
    return f"engine {kind.name}: {what}: {textwrap.shorten(text, 300, placeholder=' …')}"
