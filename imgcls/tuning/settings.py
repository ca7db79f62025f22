"""Settings of TorchServe's frontend that spare it work for each request, and the config.properties that has them.

docs/tuning.md has what each does alone: little, within the noise of that machine. What gives up something is not here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from imgcls.files import write_atomic
from imgcls.serving.config import PATH_KEYS
from imgcls.serving.logs import LOG_OPTION, log4j_config


@dataclass(frozen=True)
class FrontendSetting:
    """A key of config.properties, and what it is good for."""

    key: str
    value: str
    why: str


FRONTEND_SETTINGS = (FrontendSetting("metrics_mode", "prometheus", "no log line for each metric of each request"),)
COLLECTOR = "-XX:+UseParallelGC"  # less work a request than G1, which Java takes by itself
LOG_FILE = "log4j2.xml"
# Of what the workers' threads tell, their warnings and that a worker is started again; not each batch and each metric.
# `imgcls serve` and `imgcls status` read no other line of theirs.
_ROOT = '    <Root level="info">'
_QUIET = """\
    <Logger name="org.pytorch.serve.wlm.WorkerLifeCycle" level="warn"/>
    <Logger name="org.pytorch.serve.wlm.WorkerThread" level="info">
      <Filters>
        <ThresholdFilter level="warn" onMatch="ACCEPT" onMismatch="NEUTRAL"/>
        <RegexFilter regex="Retry worker: .*" useRawMsg="true" onMatch="ACCEPT" onMismatch="DENY"/>
      </Filters>
    </Logger>
"""
_COLLECTORS = ("UseG1GC", "UseParallelGC", "UseSerialGC", "UseShenandoahGC", "UseZGC")


def write_tuned_config(config: Mapping[str, str], target: Path, *, source: Path) -> Path:
    """Writes a config.properties with the user's settings and ours over them; the user's file is not changed.

    Relative paths in it become absolute, because they are meant against the user's folder. log4j2.xml is written
    beside it, and named in `vmargs` by its absolute path; a user's own stays.

    Args:
        config: the user's settings, as they were read when tuning began.
        target: the file to write.
        source: the user's file.
    """
    vmargs = tune_vmargs(config.get("vmargs", ""), log_config=target.absolute().with_name(LOG_FILE))
    write_atomic(target.with_name(LOG_FILE), quiet_log4j_config())
    ours = {setting.key: setting.value for setting in FRONTEND_SETTINGS} | {"vmargs": vmargs}
    kept = {key: value for key, value in config.items() if key not in ours}
    for key in PATH_KEYS:
        if key in kept:
            kept[key] = str((source.absolute().parent / kept[key]).resolve())
    lines = [f"# From {source.name}, as it was; then what imgcls tune sets, each for a measured reason."]
    lines += [f"{key}={_escape(value)}" for key, value in kept.items()]
    for setting in FRONTEND_SETTINGS:
        lines += ["", f"# {setting.why[0].upper()}{setting.why[1:]}.", f"{setting.key}={setting.value}"]
    lines += [
        "",
        "# The parallel collector takes less of the cores than G1; the log file names no batch and no metric.",
    ]
    lines += [f"vmargs={_escape(vmargs)}"]
    write_atomic(target, "\n".join(lines) + "\n")
    return target


def tune_vmargs(vmargs: str, *, log_config: Path) -> str:
    """Returns the JVM's options with our collector and log file; what the user has chosen stays."""
    options = vmargs.split()
    if not any(option.removeprefix("-XX:+") in _COLLECTORS for option in options):
        options.append(COLLECTOR)
    if not any(option.startswith(LOG_OPTION) for option in options):
        options.append(f"{LOG_OPTION}{log_config.as_uri()}")
    return " ".join(options)


def quiet_log4j_config() -> str:
    """Returns the log4j2.xml of `imgcls serve` without the lines that the workers' threads write for each batch."""
    return log4j_config().replace(_ROOT, _QUIET + _ROOT)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\")
