"""A network compiled by AOTInductor when the archive was built: a package of machine code with the weights inside.

Such code fits the torch, the platform and the instruction set that it was built for, and an instruction that the
processor lacks ends the whole process; so all three are compared before the package is loaded. They are read from the
package's own metadata, which torch writes, and to which `imgcls.archive.export` adds the version of torch.
"""

import json
import platform
import sys
import zipfile
from pathlib import Path
from typing import Any, Self

import torch
from torch._C._aoti import AOTIModelPackageLoader

from model.engines.eager import set_threads, to_device
from model.engines.engine import Engine, Logits, Pixels, describe_failure, refuse_missing
from model.engines.kinds import EngineKind
from model.errors import EngineError
from model.spec import ModelSpec

TORCH_KEY = "IMGCLS_TORCH"
LARGEST_BATCH = 1024

_SUPPORTED = {  # by the words of torch's AOTI_CPU_ISA
    "AVX2": torch.cpu._is_avx2_supported,
    "AVX512": torch.cpu._is_avx512_supported,
    "AVX512_VNNI": torch.cpu._is_vnni_supported,
    "AVX512_BF16": torch.cpu._is_avx512_bf16_supported,
    "AMX_TILE": torch.cpu._is_amx_tile_supported,
    "AMX_FP16": torch.cpu._is_amx_fp16_supported,
}


class CompiledEngine(Engine):
    """Runs a package; its batch is dynamic up to LARGEST_BATCH."""

    def __init__(self, package: Any, spec: ModelSpec, *, kind: EngineKind, device: str) -> None:
        super().__init__(kind, spec, device=device)
        self._package = package

    @classmethod
    def load(cls, file: Path, spec: ModelSpec, *, kind: EngineKind, device: str, threads: int | None = None) -> Self:
        """Loads a package that was built for this machine's kind; see Engine.load."""
        refuse_missing(file, kind=kind)
        refuse_foreign_package(file, kind=kind, device=device)
        set_threads(threads)
        index = torch.device(device).index
        try:
            # What torch._inductor.aoti_load_package calls, without five seconds and 150 MB of imports.
            package = AOTIModelPackageLoader(str(file), "model", False, 1, -1 if index is None else index)
        except Exception as err:  # as in describe_failure
            raise EngineError(describe_failure(kind, f"{file.name} cannot be loaded", err)) from err
        return cls(package, spec, kind=kind, device=device)

    @torch.inference_mode()
    def run(self, pixels: Pixels) -> Logits:
        """uint8 (B, C, H, W) -> float32 logits (B, classes); B is at most LARGEST_BATCH."""
        spec = self.spec
        if pixels.shape[1:] != (spec.channels, spec.size, spec.size) or len(pixels) > LARGEST_BATCH:
            raise EngineError(f"engine {self.kind.name}: got pixels of shape {pixels.shape}")  # it would not notice
        [answer] = self._package.run([to_device(pixels, self.device)])
        logits: Logits = answer.cpu().numpy()
        return logits

    def count_threads(self) -> int:
        """Returns torch's threads, which are the whole process's."""
        return torch.get_num_threads()

    @classmethod
    def version(cls) -> str:
        """Returns "torch" and its version."""
        return f"torch {torch.__version__}"


def refuse_foreign_package(file: Path, *, kind: EngineKind, device: str) -> None:
    """Compares what a package was built for with this machine, without running anything of it.

    Raises:
        EngineError: it cannot be read, or was built for another torch, platform, processor or device.
    """
    try:
        built = read_metadata(file)
    except Exception as err:  # a broken zip raises anything
        raise EngineError(describe_failure(kind, f"{file.name} is no package that imgcls built", err)) from err
    here = {
        TORCH_KEY: torch.__version__,
        "AOTI_PLATFORM": sys.platform,
        "AOTI_MACHINE": platform.machine(),
        "AOTI_DEVICE_KEY": torch.device(device).type,
    }
    foreign = [f"{built.get(key)} (here {value})" for key, value in here.items() if built.get(key) != value]
    needed = built["AOTI_CPU_ISA"].split()
    foreign += [f"{word} (not here)" for word in needed if not _SUPPORTED.get(word, _is_baseline)()]
    if foreign:
        raise EngineError(
            f"engine {kind.name}: {file.name} was built for {', '.join(foreign)}; build the archive on a machine "
            "of the server's kind, or set engine: auto"
        )


def read_metadata(file: Path) -> dict[str, str]:
    """Returns what a package says that it was built for; raises anything where it is none."""
    with zipfile.ZipFile(file) as package:
        [name] = [name for name in package.namelist() if name.endswith(".wrapper_metadata.json")]
        return {key: str(value) for key, value in json.loads(package.read(name)).items()}


def _is_baseline() -> bool:
    return True
