"""Programs that come with Python packages, as Envoy and k6 do: their binaries lie beside the interpreter."""

import shutil
import sys
from pathlib import Path


def find_program(name: str) -> Path | None:
    """Returns a program: the one beside this Python, else the first on the path, or None."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.is_file() else shutil.which(name)
    return Path(found) if found else None
