"""What a peer's script is told, through its environment, because each server starts its workers in its own way."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

Pipeline = Literal["docs", "ours", "noop"]
PREFIX = "IMGCLS_BENCH_"
WORKERS = 2
BATCH = 8
DELAY_MS = 1


@dataclass(frozen=True)
class Settings:
    """Of one start; workers, batch and delay are the same for all, and TorchServe's too."""

    port: int
    pipeline: Pipeline
    archive: Path  # unpacked
    engine: str

    def as_environment(self) -> dict[str, str]:
        """Returns the variables that `from_environment` reads."""
        values = {
            "PORT": self.port,
            "PIPELINE": self.pipeline,
            "ARCHIVE": self.archive.absolute(),
            "ENGINE": self.engine,
        }
        return {PREFIX + key: str(value) for key, value in values.items()}

    @classmethod
    def from_environment(cls) -> Self:
        """Reads what `as_environment` wrote."""
        [pipeline] = [name for name in get_args(Pipeline) if name == os.environ[PREFIX + "PIPELINE"]]
        port, archive = int(os.environ[PREFIX + "PORT"]), Path(os.environ[PREFIX + "ARCHIVE"])
        return cls(port, pipeline, archive, os.environ[PREFIX + "ENGINE"])

    @property
    def batch(self) -> int:
        """Most requests in a batch: the documentations' image examples answer one at a time."""
        return 1 if self.pipeline == "docs" else BATCH
