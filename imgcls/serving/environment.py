"""The environment of a server's processes: the caller's, without what would silently override the configuration."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from handler.packed import STORE_VARIABLE
from handler.trust import TRUST_VARIABLE

WORKERS_VARIABLE = "IMGCLS_WORKERS"  # a worker's threads: cores over this, where set, else over minWorkers
# These stand over the configuration, the archive or the state folder.
OVERRIDING = ("LOG_LOCATION", "METRICS_LOCATION", "PYTHONPATH", "PYTHONHOME", WORKERS_VARIABLE)
OVERRIDING_PREFIX = "TS_"
# The JVM obeys these; someone who sets them means it, so they stay.
JVM_VARIABLES = ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS", "_JAVA_OPTIONS")


def overriding_variables(environment: Mapping[str, str]) -> list[str]:
    """Returns the names of the variables that plain `torchserve` obeys over its configuration."""
    return sorted(name for name in environment if name in OVERRIDING or name.startswith(OVERRIDING_PREFIX))


def serving_environment(
    environment: Mapping[str, str],
    *,
    temporary: Path,
    workers: int | None = None,
    trust: Path | None = None,
    store: Path | None = None,
    gpus: Sequence[int] | None = None,
) -> dict[str, str]:
    """Returns the environment that `imgcls serve` starts TorchServe with.

    A PYTHONPATH would stand before the archive on a worker's import path, and a checkout on it would be served.

    Args:
        environment: the caller's.
        temporary: the server's temporary folder.
        workers: how many were asked for at start, by which each worker's threads go; None: the archive's minWorkers.
        trust: the trust file that holds, absolute; None: there is none, and each worker checks hashes.
        store: the model store, absolute, where each worker looks for the file that it was unpacked from.
        gpus: the numbers of those that it may see; None: all.
    """
    dropped = {TRUST_VARIABLE, STORE_VARIABLE, *overriding_variables(environment)}
    kept = {name: value for name, value in environment.items() if name not in dropped}
    if workers is not None:
        kept[WORKERS_VARIABLE] = str(workers)
    if trust is not None:
        kept[TRUST_VARIABLE] = str(trust)
    if store is not None:
        kept[STORE_VARIABLE] = str(store)
    if gpus is not None:
        kept["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
    if kept.get("LC_ALL") in ("C", "POSIX"):
        kept["LC_ALL"] = "C.UTF-8"  # Java opens no path beyond ASCII otherwise
    kept["ORT_DISABLE_TELEMETRY"] = "1"  # TorchServe's base handler imports onnxruntime, which would report home
    return kept | {"TMPDIR": str(temporary), "TEMP": str(temporary), "PYTHONUNBUFFERED": "1"}
