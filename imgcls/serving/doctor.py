"""Names everything that would make TorchServe fail later, each with its fix.

Each check returns its findings and raises nothing; `imgcls serve` runs those that matter before each start, and
`imgcls doctor` runs all.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from imgcls.errors import ArchiveError, ServingError, UsageError
from imgcls.serving.config import is_whole, ports_of, read_config
from imgcls.serving.environment import JVM_VARIABLES, overriding_variables
from imgcls.serving.errors import ConfigError, JavaError, PreflightError
from imgcls.serving.java import find_java, read_version
from imgcls.serving.ports import Ports, find_holder, is_free, ports_from
from imgcls.serving.state import StateFolder, find_process

if TYPE_CHECKING:
    from imgcls.archive.contents import ArchiveContents

Status = Literal["ok", "warning", "error"]

# Import name -> what to install. TorchServe declares Pillow, psutil, packaging and wheel only; without pyyaml every
# worker dies at import while /ping stays Healthy.
QUICK_PACKAGES = {
    "yaml": "pyyaml",
    "numpy": "numpy",
    "psutil": "psutil",
    "requests": "requests",
    "packaging": "packaging",
    "PIL": "pillow",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "ts": "torchserve==0.12.0",
}
PACKAGES = {**QUICK_PACKAGES, "torch": "torch"}  # torch takes seconds to import
CARD_PACKAGES = {"nvidia.nvimgcodec": "nvidia-nvimgcodec-cu13[nvjpeg]"}  # where JPEGs are decoded on the card
IMPORT_TIMEOUT_S = 120
IMPORT_SCRIPT = """
import importlib, json, sys
failed = {}
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except BaseException as err:
        failed[name] = f"{type(err).__name__}: {err}"
print(json.dumps(failed))
"""
LEAST_FREE_BYTES = 500_000_000
FULL_BYTES = 50_000_000
DEFAULT_REQUEST_BYTES = 6_553_500  # TorchServe's own, where the configuration names none
MAKE_ROOM = "make room, or choose another folder with --state or TMPDIR"
MAKE_ARCHIVE = "make an archive: ./build_mar.sh RUN"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    status: Status
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class Subject:
    """What `imgcls doctor` looks at."""

    archive: Path
    config: Path
    state: Path
    port: int | None = None
    java: str | None = None


def examine(subject: Subject) -> list[Finding]:
    """Runs every check."""
    config, findings = _read_config(subject.config)
    contents = _read_archive(subject.archive)
    model_config = contents.model_config if contents else {}
    findings += check_settings(subject.config, subject.archive)
    findings += check_java(subject.java)
    findings += check_packages(Path(sys.executable), names=list_packages(model_config))
    findings += check_archive(subject.archive)
    findings += check_request_size(config, subject.archive)
    state_findings, runs = check_state(StateFolder(subject.state))
    findings += state_findings
    if not runs:  # its own ports are not free while it runs
        findings += _check_port_choice(config, port=subject.port)
    findings += check_gpus(config, model_config)
    findings += check_disk([Path(tempfile.gettempdir()), subject.state])
    if contents and not runs:  # it has unpacked its archive already
        findings += check_unpacking(StateFolder(subject.state), contents)
    findings += check_environment(os.environ)
    return findings


def check_java(choice: str | None) -> list[Finding]:
    """Is there a Java, new enough?"""
    try:
        java = find_java(choice)
        return [Finding("java", "ok", f"Java {read_version(java)}: {java}")]
    except JavaError as err:
        return [Finding("java", "error", err.problem, err.fix)]


def list_packages(model_config: Mapping[str, Any]) -> dict[str, str]:
    """Returns what workers import: import name -> what to install."""
    handler = model_config.get("handler")
    is_on_card = isinstance(handler, Mapping) and handler.get("decode") == "gpu"
    return PACKAGES | CARD_PACKAGES if is_on_card else PACKAGES


def check_packages(python: Path, *, names: Mapping[str, str]) -> list[Finding]:
    """Can the Python that runs the workers import what they need?

    Args:
        python: the executable; the packages are imported in a process of their own.
        names: import name -> what to install.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    command = [str(python), "-c", IMPORT_SCRIPT, *names]
    try:
        result = subprocess.run(
            command,
            env=environment,
            capture_output=True,
            text=True,
            timeout=IMPORT_TIMEOUT_S,
            check=True,
            cwd=tempfile.gettempdir(),
        )
        failed: dict[str, str] = json.loads(result.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, LookupError) as err:
        return [
            Finding("packages", "error", f"{python} cannot be asked for its packages ({err})", "repair this Python")
        ]
    if not failed:
        return [Finding("packages", "ok", f"{', '.join(names)} can be imported")]
    return [
        Finding(
            f"package {names[name]}",
            "error",
            f"{name} cannot be imported ({_one_line(reason)})",
            f"pip install '{names[name]}'",
        )
        for name, reason in failed.items()
    ]


def check_archive(archive: Path) -> list[Finding]:
    """Is there an archive that this project can serve?"""
    store = archive.parent
    if not store.is_dir():
        return [Finding("archive", "error", f"{store}: the model store is missing", MAKE_ARCHIVE)]
    if not any(store.glob("*.mar")):
        return [Finding("archive", "error", f"{store}: the model store is empty", MAKE_ARCHIVE)]
    try:
        # Here, because they need a package that this room reports as missing.
        from imgcls.archive.contents import read_contents, verify_entries
        from imgcls.archive.golden import read_golden

        contents, golden = read_contents(archive), read_golden(archive)
        verify_entries(archive)
    except ArchiveError as err:
        return [Finding("archive", "error", str(err), MAKE_ARCHIVE)]
    except ModuleNotFoundError as err:
        return [Finding("archive", "warning", f"{archive} was not looked at: {err}", "install the package first")]
    return [Finding("archive", "ok", f"{archive}: {contents.name} {contents.version}, {len(golden)} golden inputs")]


def check_request_size(config: Mapping[str, str], archive: Path) -> list[Finding]:
    """Does the server accept requests as large as the archive's golden inputs, which `imgcls serve` sends?"""
    text = config.get("max_request_size", str(DEFAULT_REQUEST_BYTES))
    if not is_whole(text):
        return [Finding("request size", "error", f"max_request_size is {text!r}", "write a number of bytes")]
    try:
        from imgcls.archive.golden import read_golden

        golden = read_golden(archive)
    except (ArchiveError, ModuleNotFoundError):  # told by check_archive and check_packages
        return []
    largest = max(golden, key=lambda item: len(item.data))
    detail = f"golden input {largest.file}: {len(largest.data)} bytes, max_request_size is {text}"
    if len(largest.data) <= int(text):
        return [Finding("request size", "ok", detail)]
    return [Finding("request size", "warning", detail, f"set max_request_size={len(largest.data)} or more")]


def refuse_errors(findings: Iterable[Finding]) -> None:
    """Raises PreflightError where what was found would make TorchServe fail."""
    if errors := [finding for finding in findings if finding.status == "error"]:
        raise PreflightError("; ".join(f"{finding.detail}: {finding.fix}" for finding in errors))


def check_settings(config: Path, archive: Path) -> list[Finding]:
    """Does a configuration hold what TorchServe ignores, cannot use, or what does harm?"""
    try:
        from imgcls.serving.lint import lint_archive, lint_config_file
    except ModuleNotFoundError:  # told by check_packages
        return []
    found = []
    for path, lint in ((config, lint_config_file), (archive, lint_archive)):
        try:
            found += lint(path)
        except (ArchiveError, UsageError):  # told by _read_config and check_archive
            continue
    return [Finding("settings", each.status, f"{each.place}: {each.problem}", each.fix) for each in found]


def check_ports(ports: Ports) -> list[Finding]:
    """Is each port free?"""
    taken: dict[str, list[str]] = {}  # holder -> its ports
    for name, port in ports.model_dump().items():
        if not is_free(port):
            taken.setdefault(find_holder(port), []).append(f"port {port} ({name})")
    if not taken:
        return [Finding("ports", "ok", f"{', '.join(map(str, ports.model_dump().values()))} are free")]
    uses = [f"{', '.join(held)} {'is' if len(held) == 1 else 'are'} in use by {who}" for who, held in taken.items()]
    return [Finding("ports", "error", "; ".join(uses), "end it, or choose others with --port N")]


def check_state(folder: StateFolder) -> tuple[list[Finding], bool]:
    """Is the state folder's server alive, or only its leftovers?

    Returns:
        The findings, and whether a server runs.
    """
    try:
        state = folder.read()
    except ServingError as err:
        fix = f"name another folder with --state, or remove {folder.state_file} if imgcls wrote it"
        return [Finding("state", "error", str(err), fix)], False
    if state is None and folder.is_foreign():
        detail = f"{folder.path}: holds files that are not imgcls', and imgcls serve will refuse it"
        return [Finding("state", "error", detail, "name a folder of its own with --state")], False
    if state is None:
        return [Finding("state", "ok", f"{folder.path}: no server")], False
    if find_process(state) is not None:
        return [
            Finding("state", "ok", f"{folder.path}: {state.model} is served at {state.inference_url}, pid {state.pid}")
        ], True
    detail = f"{folder.path}: its server, pid {state.pid}, is gone and has left its files"
    return [Finding("state", "warning", detail, "imgcls stop removes them; imgcls serve does so too")], False


def check_gpus(config: Mapping[str, str], model_config: Mapping[str, Any]) -> list[Finding]:
    """Is there a GPU driver where a GPU is asked for? TorchServe counts GPUs with nvidia-smi."""
    wanted = config.get("number_of_gpu", "")
    asked = (is_whole(wanted) and int(wanted) > 0) or str(model_config.get("deviceType", "")).lower() == "gpu"
    gpus = _list_gpus()
    if gpus:
        return [Finding("gpu", "ok", f"{len(gpus)} found by nvidia-smi: {', '.join(gpus)}")]
    if asked:
        fix = "install the NVIDIA driver, or set number_of_gpu=0 and deviceType: cpu"
        return [Finding("gpu", "error", "the configuration asks for a GPU, but nvidia-smi finds none", fix)]
    return [Finding("gpu", "ok", "none; the workers run on the CPU")]


def check_disk(folders: Iterable[Path]) -> list[Finding]:
    """Is there room for logs and small archives?"""
    return [_check_room(folder) for folder in folders]


def check_unpacking(folder: StateFolder, contents: ArchiveContents) -> list[Finding]:
    """Is there room for the archive where TorchServe will unpack it, and for its logs then?"""
    return check_room_for(contents, Path(tempfile.gettempdir()) if folder.is_deep else folder.path)


def check_room_for(contents: ArchiveContents, folder: Path) -> list[Finding]:
    """Is there room for an unpacked archive in this folder, and for logs then?"""
    existing = _find_existing(folder)
    needed_bytes = sum(contents.sizes.values())
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes >= needed_bytes + FULL_BYTES:
        return []
    detail = f"{existing}: {free_bytes / 1e6:,.0f} MB free, and the archive takes {needed_bytes / 1e6:,.0f} MB unpacked"
    return [Finding("disk", "error", detail, MAKE_ROOM)]


def check_environment(environment: Mapping[str, str]) -> list[Finding]:
    """Does a variable override the configuration behind the user's back?"""
    findings = [
        Finding(
            "environment",
            "warning",
            f"{name} is set: imgcls serve ignores it, plain torchserve obeys it",
            f"unset {name}",
        )
        for name in overriding_variables(environment)
    ]
    findings += [
        Finding(
            "environment", "warning", f"{name}={environment[name]!r} changes every Java", f"unset {name}, or use vmargs"
        )
        for name in JVM_VARIABLES
        if name in environment
    ]
    if home := environment.get("JAVA_HOME"):
        detail = f"JAVA_HOME={home}: plain torchserve uses it; imgcls serve does only with --java system"
        findings.append(Finding("environment", "ok", detail))
    return findings or [Finding("environment", "ok", "no variable overrides the configuration")]


def _read_config(path: Path) -> tuple[dict[str, str], list[Finding]]:
    try:
        config = read_config(path)
        ports_of(config)
    except ConfigError as err:
        return {}, [Finding("configuration", "error", str(err), "repair the file, or name another with --ts-config")]
    return config, [Finding("configuration", "ok", str(path))]


def _check_port_choice(config: Mapping[str, str], *, port: int | None) -> list[Finding]:
    try:
        return check_ports(ports_of(config) if port is None else ports_from(port))
    except ConfigError as err:
        return [Finding("ports", "error", str(err), "choose others with --port N")]


def _read_archive(archive: Path) -> ArchiveContents | None:
    try:
        from imgcls.archive.contents import read_contents

        return read_contents(archive)
    except (ArchiveError, ModuleNotFoundError):  # told by check_archive and check_packages
        return None


def _list_gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in result.stdout.splitlines() if line.strip()]


def _check_room(folder: Path) -> Finding:
    existing = _find_existing(folder)
    if not os.access(existing, os.W_OK):
        return Finding("disk", "error", f"{existing} cannot be written", "choose another folder with --state or TMPDIR")
    free_bytes = shutil.disk_usage(existing).free
    detail = f"{existing}: {free_bytes / 1e9:.1f} GB free"
    if free_bytes >= LEAST_FREE_BYTES:
        return Finding("disk", "ok", detail)
    status: Status = "error" if free_bytes < FULL_BYTES else "warning"
    return Finding("disk", status, detail, MAKE_ROOM)


def _find_existing(folder: Path) -> Path:
    return next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]
