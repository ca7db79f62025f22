"""What each setting of TorchServe's frontend does to its cost of a request, measured alone: for docs/tuning.md.

    python -m imgcls.tuning.frontend ARCHIVE [VARIANT …]

Two servers run at once, one with the project's config.properties and one with a single setting changed, and take turns
under the same load: bodies of 100 kB that are no image, which the handler refuses at their first bytes. What is left is
the frontend, and TorchServe's own work in the worker. The ratio of the frontend's CPU time a request is taken within
each pair of turns; on a busy machine that is what can be trusted. `nothing` changes nothing: it shows the noise.
"""

import json
import secrets
import statistics
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from imgcls.scratch import ScratchFolder
from imgcls.serving.access import inference_token
from imgcls.serving.config import read_config, write_config
from imgcls.serving.logs import log4j_config
from imgcls.serving.server import ServeOptions, start, stop
from imgcls.serving.state import StateFolder
from imgcls.tuning.load import Target, closed_loop
from imgcls.tuning.settings import LOG_FILE, quiet_log4j_config, tune_vmargs
from imgcls.tuning.slo import Slo

CONNECTIONS, TURN_S, PAIRS, WARM_S = 16, 1.0, 40, 4.0
BODY_BYTES = 100_000
ROOT_LOGGER = '    <Root level="info">'

Change = Callable[[dict[str, str], Path], dict[str, str]]


def _set(**values: str) -> Change:
    return lambda config, folder: config | values


def _vmargs(before: str, after: str) -> Change:
    return lambda config, folder: config | {"vmargs": config["vmargs"].replace(before, after)}


def _add_vmarg(option: str) -> Change:
    return lambda config, folder: config | {"vmargs": f"{config['vmargs']} {option}"}


def _logs(*changes: tuple[str, str]) -> Change:
    """Another log4j2.xml than `imgcls serve` writes; of two options of the same name Java takes the last."""

    def change(config: dict[str, str], folder: Path) -> dict[str, str]:
        text = log4j_config()
        for before, after in changes:
            text = text.replace(before, after)
        (folder / LOG_FILE).write_text(text, encoding="utf-8")
        file = (folder / LOG_FILE).as_uri()
        return config | {"vmargs": f"{config['vmargs']} -Dlog4j.configurationFile={file}"}

    return change


def _quiet_logs(config: dict[str, str], folder: Path) -> dict[str, str]:
    (folder / LOG_FILE).write_text(quiet_log4j_config(), encoding="utf-8")
    return config | {"vmargs": tune_vmargs(config["vmargs"], log_config=folder / LOG_FILE)}


_NO_ACCESS_LOG = ('name="ACCESS_LOG" level="info"', 'name="ACCESS_LOG" level="off"')
_WORKERS_WARN = (ROOT_LOGGER, f'    <Logger name="org.pytorch.serve.wlm" level="warn"/>\n{ROOT_LOGGER}')
_MODEL_WARN = ('name="MODEL_LOG" level="all"', 'name="MODEL_LOG" level="warn"')

VARIANTS: dict[str, Change] = {
    "nothing": _set(),
    "metrics_mode=log": _set(metrics_mode="log"),
    "prefer_direct_buffer=true": _set(prefer_direct_buffer="true"),
    "number_of_netty_threads=1": _set(number_of_netty_threads="1", netty_client_threads="1"),
    "use_native_io=false": _set(use_native_io="false"),
    "io_ratio=100": _set(io_ratio="100"),
    "async_logging=true": _set(async_logging="true"),
    "disable_system_metrics=true": _set(disable_system_metrics="true"),
    "disable_token_authorization=true": _set(disable_token_authorization="true"),
    "job_queue_size=1000": _set(job_queue_size="1000"),
    "serial collector": _vmargs("UseParallelGC", "UseSerialGC"),
    "G1 collector": _vmargs("UseParallelGC", "UseG1GC"),
    "-Xms1g": _vmargs("-Xms64m", "-Xms1g"),
    "-XX:TieredStopAtLevel=1": _add_vmarg("-XX:TieredStopAtLevel=1"),
    "no leak detection in netty": _add_vmarg("-Dio.netty.leakDetection.level=disabled"),
    "no access log": _logs(_NO_ACCESS_LOG),
    "no log of workers' threads": _logs(_WORKERS_WARN),
    "of workers' threads only warnings and retries": _quiet_logs,
    "warnings only in all logs": _logs(_NO_ACCESS_LOG, _WORKERS_WARN, _MODEL_WARN),
}


@dataclass(frozen=True)
class Turn:
    """One second of load on one server."""

    frontend_ms: float  # CPU time of the frontend a request
    requests_per_s: float


class Frontend:
    """One server with its settings."""

    def __init__(self, archive: Path, config: Mapping[str, str], change: Change, *, stack: ExitStack) -> None:
        folder = Path(stack.enter_context(ScratchFolder("fe")))
        write_config(folder / "config.properties", change(dict(config), folder))
        self._folder = StateFolder(folder / "state")
        stack.callback(stop, self._folder)
        options = ServeOptions(
            archive, folder / "config.properties", self._folder.path, port=0, workers=1, dies_with_parent=True
        )
        state = start(options)
        (folder / "noise").write_bytes(secrets.token_bytes(BODY_BYTES))
        (folder / "bodies.json").write_text(json.dumps([str(folder / "noise")]), encoding="utf-8")
        token = inference_token(state, self._folder)
        url = f"{state.inference_url}/predictions/{state.model}"
        self._target = Target(url, token, folder / "bodies.json", Slo(99, 1000))
        self._process = psutil.Process(state.pid)

    def take_turn(self, duration_s: float = TURN_S) -> Turn:
        """Runs load for a while."""
        before_s = self._cpu_s()
        stretch = closed_loop(self._target, connections=CONNECTIONS, duration_s=duration_s)
        requests = stretch.answered + stretch.failed  # each is answered, with 415
        return Turn((self._cpu_s() - before_s) / requests * 1000, requests / duration_s)

    def _cpu_s(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system


def compare(archive: Path, config: Mapping[str, str], change: Change, *, pairs: int = PAIRS) -> str:
    """Returns a row: the median ratios to the unchanged server, and what they were between in half of the pairs."""
    with ExitStack() as stack:
        both = [Frontend(archive, config, each, stack=stack) for each in (_set(), change)]
        for server in both:
            server.take_turn(WARM_S)
        turns = []
        for number in range(pairs):
            order = both if number % 2 == 0 else both[::-1]
            taken = {server: server.take_turn() for server in order}
            turns.append((taken[both[0]], taken[both[1]]))
    cost = [changed.frontend_ms / plain.frontend_ms for plain, changed in turns]
    rate = [changed.requests_per_s / plain.requests_per_s for plain, changed in turns]
    low, middle, high = statistics.quantiles(cost, n=4)
    return f"{middle:.2f} | {low:.2f} to {high:.2f} | {statistics.median(rate):.2f}"


def main(archive: Path, names: list[str]) -> None:
    """Prints a table in Markdown."""
    config = read_config(Path("config.properties"))
    print(
        "| changed alone | frontend's CPU a request | half of the pairs | requests/s |\n|---|---|---|---|", flush=True
    )
    for name in names or VARIANTS:
        print(f"| {name} | {compare(archive, config, VARIANTS[name])} |", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
