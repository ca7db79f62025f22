"""What a measured number stands beside: the machine, what it has to give, and the software that ran on it."""

import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from imgcls.memory import count_memory_bytes, measure_free_bytes
from model.cores import count_cores

PACKAGES = ("imgcls", "torchserve", "torch", "onnxruntime", "openvino", "k6")
INSTRUCTIONS = {  # as /proc/cpuinfo has them, the fastest at int8 first
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
}


@dataclass(frozen=True)
class Machine:
    """One machine, as this process may use it."""

    cores: int
    processor: str
    memory_bytes: int
    available_bytes: int
    gpus: tuple[str, ...]
    system: str
    load_before: float  # processes that wanted a core in the last minute, before anything was measured
    packages: dict[str, str]
    time: str  # UTC


def describe_machine() -> Machine:
    """Looks at this machine; held to the container's limits (cgroup v2)."""
    return Machine(
        cores=count_cores(),
        processor=find_processor(),
        memory_bytes=count_memory_bytes(),
        available_bytes=measure_free_bytes(),
        gpus=tuple(_list_gpus()),
        system=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        load_before=round(os.getloadavg()[0], 2),
        packages=dict(_list_packages()),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def serves_on_gpu(machine: Machine, *, config: Mapping[str, str], model_config: Mapping[str, Any]) -> bool:
    """Tells whether TorchServe would give the workers GPUs."""
    refused = config.get("number_of_gpu") == "0" or str(model_config.get("deviceType", "")).lower() == "cpu"
    return bool(machine.gpus) and not refused


def find_processor(*, cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Returns the processor's name, with the fastest of the instructions that int8 engines use where it has one."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())  # of the first core
    name = fields.get("model name") or platform.machine()
    flags = fields.get("flags", "").split()
    best = next((words for flag, words in INSTRUCTIONS.items() if flag in flags), None)
    return f"{name} with {best}" if best else name


def _list_gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return result.stdout.split("\n")[:-1] if result.returncode == 0 else []


def _list_packages() -> list[tuple[str, str]]:
    found = []
    for name in PACKAGES:
        try:
            found.append((name, version(name)))
        except PackageNotFoundError:
            continue
    return found
