"""torch.compile at the start of each worker: for who asks for it by name where no compiled package can be built.

It needs a C++ compiler on the server, and the first batch takes up to a minute.
"""

from pathlib import Path
from typing import Self

import torch

from model.engines.eager import EagerEngine, PixelNetwork
from model.engines.kinds import EngineKind
from model.spec import ModelSpec


class TorchCompileEngine(EagerEngine):
    """The eager network behind torch.compile, with a dynamic batch."""

    def __init__(self, module: PixelNetwork, spec: ModelSpec, *, kind: EngineKind, device: str) -> None:
        super().__init__(module, spec, kind=kind, device=device)
        self.module.compile(dynamic=True)  # in place; compiles at the first batch

    @classmethod
    def load(cls, file: Path, spec: ModelSpec, *, kind: EngineKind, device: str, threads: int | None = None) -> Self:
        """Loads the weights; see Engine.load."""
        torch._dynamo.reset()  # what an earlier engine of this process has compiled counts against a limit
        return super().load(file, spec, kind=kind, device=device, threads=threads)
