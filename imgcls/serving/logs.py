"""What the server logs, and what its logs tell when a worker dies.

TorchServe's own configuration writes each line to the console too, and five lines for each request; this one writes
rolling files only, and drops the lines that every request repeats.
"""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOG_OPTION = "-Dlog4j.configurationFile="  # of Java
LOG4J_CONFIG = """\
<?xml version="1.0" encoding="UTF-8"?>
<!-- Written by imgcls serve at each start. -->
<Configuration status="error">
  <Appenders>
{appenders}
  </Appenders>
  <Loggers>
    <Logger name="ACCESS_LOG" level="info" additivity="false"><AppenderRef ref="access_log"/></Logger>
    <Logger name="MODEL_LOG" level="all" additivity="false"><AppenderRef ref="model_log"/></Logger>
    <Logger name="MODEL_METRICS" level="all" additivity="false"><AppenderRef ref="model_metrics"/></Logger>
    <Logger name="TS_METRICS" level="all" additivity="false"><AppenderRef ref="ts_metrics"/></Logger>
    <Logger name="org.pytorch.serve.wlm.BatchAggregator" level="warn"/>
    <Logger name="io.netty" level="error"/>
    <Logger name="org.apache" level="off"/>
    <Root level="info"><AppenderRef ref="ts_log"/></Root>
  </Loggers>
</Configuration>
"""
APPENDER = """\
    <RollingFile name="{name}" fileName="logs/{name}.log" filePattern="logs/{name}.%i.log.gz">
      <RegexFilter regex="{noise}" useRawMsg="false" onMatch="DENY" onMismatch="NEUTRAL"/>
      <PatternLayout pattern="{pattern}"/>
      <SizeBasedTriggeringPolicy size="20 MB"/>
      <DefaultRolloverStrategy max="5"/>
    </RollingFile>"""
PATTERN = "%d{ISO8601} [%-5p] %t %c - %m%n"
NOISE = {
    "model_log": r"Backend received inference at: \d+",
    "ts_log": r"(Looping backend response at|Backend response time|result=\[METRICS\]).*",
}

# Lines that TorchServe writes once a worker could not be started or has died, in ts_log.
FAILURE = re.compile(
    r"Load model failed|Backend worker error|Backend stream closed|Failed to load model|Retry worker: "
)
MODEL_LINE = re.compile(r"^(?P<time>\S+) \[\w+ *\] (?P<thread>\S+) MODEL_LOG - (?P<text>.*)$")
# What our handler says once it has loaded (handler/image_classifier.py), and TorchServe's worker before it begins.
LOADED = re.compile(r"^\S+ \S+: \S+, engine \{")
STARTED = "Torch worker started."
TRACEBACK = "Traceback (most recent call last)"
# What a worker says while all is well, and what Python writes when it ends: not the reason of a failure.
CHATTER = re.compile(
    r"s_name_part0|Listening on|Successfully loaded .*metrics|\[PID\]|Torch worker started|Python runtime"
    r"|Connection accepted|model_name: |Backend worker process died|Frontend disconnected|Backend received inference"
    rf"|{LOADED.pattern}"
)
# What TorchServe's worker ends with after an exception that its handler raised.
WRAPPER = re.compile(r"RuntimeError: \d+ - Unknown exception")
# What a frontend that ends by itself writes to the console: Java's own words, or an exception's.
CONSOLE_ERROR = re.compile(
    r"error|exception|fail|invalid|unrecognized|could not|cannot|unable|too (small|large)|terminating|killed",
    re.IGNORECASE,
)
# Java's last words say only that there was an error; the line above them says which. TorchServe looks for nvidia-smi at
# each start, and says so on every machine without a GPU.
CONSOLE_CHATTER = re.compile(
    r"^\s+at |Could not create the Java Virtual Machine|A fatal exception has occurred|^nvidia-smi not available"
)
LAST_LINES = 30


@dataclass(frozen=True)
class WorkerFailure:
    """Why a worker could not start."""

    reason: str  # one line
    details: str  # its traceback, or its last lines


def log4j_config() -> str:
    """Returns the log4j2.xml of a server whose working directory is its state folder."""
    names = ("access_log", "model_log", "model_metrics", "ts_log", "ts_metrics")
    appenders = [APPENDER.format(name=name, noise=NOISE.get(name, "(?!)"), pattern=PATTERN) for name in names]
    return LOG4J_CONFIG.format(appenders="\n".join(appenders))


def find_log_config(vmargs: str) -> Path | None:
    """Returns the file on this machine by which Java's options have it log; None where they name none."""
    named = [option.removeprefix(LOG_OPTION) for option in vmargs.split() if option.startswith(LOG_OPTION)]
    place = urlsplit(named[-1] if named else "")  # of two Java takes the last
    path = Path(unquote(place.path))
    return path if place.scheme in ("", "file") and path.is_absolute() else None


def size_of(path: Path) -> int:
    """Returns how many bytes a log holds now, 0 when it is not there: where to read on from."""
    return path.stat().st_size if path.exists() else 0


def has_failure(server_log: Path, *, offset: int = 0, version: str = "") -> bool:
    """Tells whether a worker has failed to start since `offset` bytes of ts_log.

    Args:
        server_log: ts_log.
        offset: where to begin.
        version: `MODEL_VERSION`, whose workers alone count; all workers where it is empty.
    """
    lines = read_lines(server_log, offset=offset)
    return any(FAILURE.search(line) and _is_of(line, version) for line in lines)


def find_failure(model_log: Path, server_log: Path, *, offset: int = 0, version: str = "") -> WorkerFailure:
    """Returns why a worker failed, from what it wrote since `offset` bytes of model_log.

    A worker that was killed, for lack of memory for instance, has written nothing: then TorchServe's words must do.
    """
    said = last_worker_lines([line for line in read_lines(model_log, offset=offset) if _is_of(line, version)])
    if not said:
        words = _failure_lines(server_log)
        is_refused = "Failed to load model" in words  # the frontend's words: no worker was started
        reason = "TorchServe refused the archive" if is_refused else "it ended without a word; was it killed?"
        return WorkerFailure(reason, words)
    return WorkerFailure(reason_of(said), "\n".join(said))


@dataclass(frozen=True)
class VersionFailure:
    """The last exception that a worker of a model's version wrote."""

    time: str  # as the log has it, to the second
    reason: str  # the exception's line
    has_loaded_since: bool = False  # in a worker that was started after it


def find_version_failures(model_log: Path, model: str) -> dict[str, VersionFailure]:
    """Returns the last failure of each of a model's versions that the log tells of, by version.

    TorchServe forgets a version whose workers could not load: then only the log tells that it was there.
    """
    thread = re.compile(rf"(?P<worker>W-\d+-{re.escape(model)}_(?P<version>.+))-std(out|err)")
    failures: dict[str, VersionFailure] = {}
    in_traceback: set[str] = set()
    started: dict[str, set[str]] = {}  # by version: the workers since its last failure; its others may load in spite
    for line in read_lines(model_log):
        match = MODEL_LINE.match(line)
        worker = thread.fullmatch(match["thread"]) if match else None
        if match is None or worker is None:
            continue
        version = worker["version"]
        if match["text"].startswith(TRACEBACK):
            in_traceback.add(match["thread"])
        elif match["thread"] in in_traceback and match["text"] and not match["text"].startswith(" "):
            failures[version] = VersionFailure(match["time"].partition(",")[0], match["text"])
            in_traceback.discard(match["thread"])
            started[version] = set()
        elif match["text"] == STARTED:
            started.setdefault(version, set()).add(worker["worker"])
        elif version in failures and LOADED.search(match["text"]) and worker["worker"] in started[version]:
            failures[version] = replace(failures[version], has_loaded_since=True)
    return failures


def last_worker_lines(lines: list[str]) -> list[str]:
    """Returns the traceback of the worker that failed first, or else the last words of the one that spoke last."""
    found = [match for line in lines if (match := MODEL_LINE.match(line)) and not CHATTER.search(match["text"])]
    if not found:
        return []
    failed = [match for match in found if match["text"].startswith(TRACEBACK)]
    speaker = failed[0] if failed else found[-1]  # the first: another's traceback may not be complete yet
    texts = [match["text"] for match in found if match["thread"] == speaker["thread"]]
    starts = [index for index, text in enumerate(texts) if text.startswith(TRACEBACK)]
    # The first one: TorchServe starts a dead worker again, and what follows may be its second failure, cut short.
    return texts[starts[0] :][:200] if starts else texts[-LAST_LINES:]


def reason_of(lines: list[str]) -> str:
    """Returns the line that names the last exception: the first after its traceback's frames, which are indented.

    What TorchServe's worker raises itself, once it has written the handler's exception, is not it.
    """
    starts = [index for index, line in enumerate(lines) if line.startswith("Traceback")]
    reasons = [next((line for line in lines[start + 1 :] if line and not line.startswith(" ")), "") for start in starts]
    named = [reason for reason in reasons if reason and not WRAPPER.match(reason)]
    return named[-1] if named else lines[-1]


def reason_of_end(console_log: Path) -> str:
    """Returns the last line of the console that tells of an error, never a `Model server started.`."""
    lines = read_lines(console_log)
    errors = [line for line in lines if CONSOLE_ERROR.search(line) and not CONSOLE_CHATTER.search(line)]
    return errors[-1].strip() if errors else "it ended without a word (stopped or killed?)"


def tail(path: Path, *, lines: int = LAST_LINES) -> str:
    """Returns the last lines of a log, empty when it is not there."""
    return "\n".join(read_lines(path)[-lines:])


def read_lines(path: Path, *, offset: int = 0) -> list[str]:
    """Returns the lines of a log from `offset` bytes on; from its start when it has been rolled since."""
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(offset if offset <= size_of(path) else 0)
        return file.read().decode(errors="replace").splitlines()


def read_on(path: Path, *, offset: int) -> tuple[list[str], int]:
    """Returns the whole lines of a log from `offset` bytes on, and where to read on: each line once, while it grows."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            start = file.seek(offset if offset <= size else 0)  # rolled since
            new = file.read()
    except FileNotFoundError:
        return [], 0
    whole = new[: new.rfind(b"\n") + 1]
    return whole.decode(errors="replace").splitlines(), start + len(whole)


def _is_of(line: str, version: str) -> bool:
    """Tells whether a worker of a version wrote a line, or its thread in the frontend did."""
    return not version or re.search(rf" W-\d+-{re.escape(version)}(-std(out|err))? ", line) is not None


def _failure_lines(server_log: Path) -> str:
    return "\n".join(line for line in read_lines(server_log) if FAILURE.search(line))
