"""The environment of a server's processes: the caller's, without what would silently override the configuration."""

from collections.abc import Mapping
from pathlib import Path

# These stand over the configuration, the archive or the state folder.
OVERRIDING = ("LOG_LOCATION", "METRICS_LOCATION", "PYTHONPATH", "PYTHONHOME")
OVERRIDING_PREFIX = "TS_"
# The JVM obeys these; someone who sets them means it, so they stay.
JVM_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")


def overriding_variables(environment: Mapping[str, str]) -> list[str]:
    """Returns the names of the variables that plain `torchserve` obeys over its configuration."""
    return sorted(name for name in environment if name in OVERRIDING or name.startswith(OVERRIDING_PREFIX))


def serving_environment(environment: Mapping[str, str], *, temporary: Path) -> dict[str, str]:
    """Returns the environment that `imgcls serve` starts TorchServe with.

    A PYTHONPATH would stand before the archive on a worker's import path, and a checkout on it would be served.
    """
    dropped = set(overriding_variables(environment))
    kept = {name: value for name, value in environment.items() if name not in dropped}
    return kept | {"TMPDIR": str(temporary), "TEMP": str(temporary), "PYTHONUNBUFFERED": "1"}
