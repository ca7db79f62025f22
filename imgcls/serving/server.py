"""Starts and stops one TorchServe: the door of this room.

    start:  trust, checks ─► state folder ─► Java ─► workers READY ─► golden answers right ─► ServerState
    stop:   SIGTERM ─► SIGKILL for what is left ─► temporary folder, tokens and state removed

A start that fails, or is interrupted, leaves no process behind.
"""

import importlib.util
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from imgcls.archive.contents import ArchiveContents, read_contents
from imgcls.archive.golden import read_golden
from imgcls.archive.trust import find_trust_file
from imgcls.errors import ServingError, UsageError
from imgcls.files import write_atomic
from imgcls.serving import config as configuration
from imgcls.serving import doctor, logs, processes
from imgcls.serving.access import inference_client, management_client
from imgcls.serving.capacity import refuse_workers
from imgcls.serving.environment import serving_environment
from imgcls.serving.errors import AlreadyRunningError, NotReadyError, OvertakenError
from imgcls.serving.java import find_java
from imgcls.serving.management import ModelStatus
from imgcls.serving.ports import Ports, ports_from
from imgcls.serving.readiness import LogWatch, check_golden, wait_for_workers
from imgcls.serving.state import ServerState, StateFolder, find_process, read_start
from imgcls.serving.tokens import read_tokens
from imgcls.serving.trust import check_before_start

DEFAULT_TIMEOUT_S = 180.0
LARGE_BYTES = 500_000_000  # of an archive that takes a while to be verified


@dataclass(frozen=True)
class ServeOptions:
    """What to serve, and how; None leaves it to the configuration."""

    archive: Path
    config: Path
    state: Path
    port: int | None = None  # the first of five in a row; 0 for free ones
    workers: int | None = None
    java: str | None = None
    trust: Path | None = None  # None: $IMGCLS_TRUST, else trust.yaml beside the configuration, else `hash`
    python: Path = Path(sys.executable)  # what the workers run on
    timeout_s: float = DEFAULT_TIMEOUT_S
    dies_with_parent: bool = False  # when the thread that started it ends, that is
    model_api: bool = False  # versions may be registered and taken away, as behind a gateway
    gpus: tuple[int, ...] | None = None  # that it may see; None: all
    checks_packages: bool = True  # False where the same server has run before


def start(options: ServeOptions, *, on_progress: Callable[[str], None] = lambda text: None) -> ServerState:
    """Starts TorchServe and returns once it answers right.

    Raises:
        ArchiveError: the archive cannot be served, or is not what the trust file demands.
        UsageError: the trust file cannot be used; the state folder is not ours, or would overwrite the configuration;
            the archive wants more workers than could be.
        ServingError: what stands in the way, or why it did not become ready; nothing is left running then.
    """
    folder = StateFolder(options.state)
    contents = read_contents(options.archive)
    if options.archive.stat().st_size > LARGE_BYTES:
        on_progress("verifying the archive")
    trust = check_before_start(options.archive, find_trust_file(options.trust, config=options.config))
    config = configuration.read_config(options.config)
    _refuse_own_config(options.config, folder)
    packed = contents.model_config.get("minWorkers")
    if options.workers is None and isinstance(packed, int):  # --workers stands over it
        refuse_workers(packed, what=f"{options.archive}: minWorkers")
    with folder.lock():
        _refuse_second_server(folder)
        java = find_java(options.java)
        named = configuration.ports_of(config)  # also where others are asked for: it checks the addresses
        ports = named if options.port is None else ports_from(options.port)
        _check_before(options, config=config, contents=contents, ports=ports, on_progress=on_progress)
        folder.prepare()
        config = _write_configuration(options, folder=folder, config=config, ports=ports)
        server_id, temporary = uuid.uuid4().hex, folder.make_temporary()
        watch = LogWatch(folder)
        try:
            process = processes.launch(
                _command(options, folder=folder, config=config, name=contents.name, java=java, temporary=temporary),
                server_id=server_id,
                folder=folder.path,
                log=folder.console_log,
                environment=serving_environment(
                    os.environ,
                    temporary=temporary,
                    workers=options.workers,
                    trust=trust.file,
                    store=options.archive.absolute().parent,
                    gpus=options.gpus,
                ),
                dies_with_parent=options.dies_with_parent,
            )
            state = ServerState(
                server_id=server_id,
                pid=process.pid,
                created_s=_create_time(process),
                started=read_start(process.pid),
                ports=ports,
                inference_url=configuration.address_of(config, "inference", port=ports.inference),
                management_url=configuration.address_of(config, "management", port=ports.management),
                token_required=config.get("disable_token_authorization", "false").lower() != "true",
                archive=options.archive.absolute(),
                model=contents.name,
                version=contents.version,
                temporary=temporary,
                trust=trust,
            )
            folder.write(state)
            _wait_until_ready(state, folder, options=options, watch=watch, on_progress=on_progress)
        except BaseException:  # a signal too, at whatever line it comes
            processes.end_all(server_id, frontend=None)
            folder.forget(temporary)
            raise
    return state


def stop(folder: StateFolder) -> bool:
    """Ends a server and all its workers, and removes what it leaves but its logs.

    Returns:
        Whether its frontend was running; False too when there is none, so that stopping twice does no harm.

    Raises:
        ServingError: state.json is broken.
    """
    state = folder.read()
    if state is None:
        return False
    frontend = find_process(state)
    processes.end_all(state.server_id, frontend=frontend)
    folder.forget(state.temporary)
    return frontend is not None


def scale(
    folder: StateFolder,
    workers: int,
    *,
    name: str | None = None,
    timeout_s: float = DEFAULT_TIMEOUT_S,
    on_progress: Callable[[str], None] = lambda text: None,
) -> ModelStatus:
    """Changes a model's number of workers, and returns once all are READY.

    Raises:
        NotRunningError: there is no server.
        NotReadyError: the workers are not READY in time, one has died while loading, or another number was asked for.
        ManagementError: the server refused.
    """
    state = folder.read_running()
    watch = LogWatch(folder)
    with management_client(state, folder) as management:
        management.scale(name or state.model, workers)
        return wait_for_workers(
            management,
            name or state.model,
            watch=watch,
            deadline_s=time.monotonic() + timeout_s,
            workers=workers,
            check_alive=lambda: check_alive(state, folder),
            on_progress=on_progress,
        )


def _refuse_own_config(config: Path, folder: StateFolder) -> None:
    if config.resolve() == folder.config_file.resolve():
        raise UsageError(
            f"{config}: each start would overwrite this file, as it lies in the state folder {folder.path}; "
            "name another folder with --state, or another file with --ts-config"
        )


def _refuse_second_server(folder: StateFolder) -> None:
    state = folder.read()
    if state is None:
        return
    if find_process(state) is not None:
        raise AlreadyRunningError(
            f"{folder.path}: {state.model} is already served at {state.inference_url} (pid {state.pid}); "
            "stop it with imgcls stop, or start another with --state DIR --port N"
        )
    stop(folder)  # what a crash has left


def _check_before(
    options: ServeOptions,
    *,
    config: Mapping[str, str],
    contents: ArchiveContents,
    ports: Ports,
    on_progress: Callable[[str], None],
) -> None:
    findings = [
        *doctor.check_settings(options.config, options.archive),
        *doctor.check_ports(ports),
        *doctor.check_gpus(config, contents.model_config),
        *doctor.check_disk([options.state]),
        *doctor.check_unpacking(StateFolder(options.state), contents),
        *(doctor.check_packages(options.python, names=doctor.QUICK_PACKAGES) if options.checks_packages else ()),
    ]
    doctor.refuse_errors(findings)
    for finding in findings:
        if finding.status == "warning":
            on_progress(f"warning: {finding.detail}; {finding.fix}")


def _write_configuration(
    options: ServeOptions, *, folder: StateFolder, config: Mapping[str, str], ports: Ports
) -> dict[str, str]:
    overlay = configuration.Overlay(
        options.archive.parent, ports=ports, workers=options.workers, model_api=options.model_api
    )
    merged = configuration.merge_config(config, overlay, folder=options.config.absolute().parent)
    configuration.write_config(folder.config_file, merged)
    write_atomic(folder.log_config_file, logs.log4j_config())
    return merged


def _command(
    options: ServeOptions, *, folder: StateFolder, config: Mapping[str, str], name: str, java: Path, temporary: Path
) -> list[str]:
    """Returns what `torchserve --start` would run; its own launcher would stand between us and the process."""
    package = importlib.util.find_spec("ts")
    if package is None or package.origin is None:
        raise ServingError("TorchServe is not installed; install it with pip install 'imgcls[serve]'")
    home = Path(package.origin).parent.parent
    return [
        str(java),
        f"-Dmodel_server_home={home}",
        f"-Djava.io.tmpdir={temporary}",
        f"{logs.LOG_OPTION}{folder.log_config_file.as_uri()}",
        *config.get("vmargs", "").split(),
        "-cp",
        f".:{home / 'ts' / 'frontend'}/*",
        "org.pytorch.serve.ModelServer",
        *("--python", str(options.python)),
        *("-f", str(folder.config_file)),
        *("-s", config["model_store"]),
        "-ncs",  # no snapshots: a restart starts from the configuration, not from what was scaled by hand
        *("-m", f"{name}={options.archive.name}"),
    ]


def _create_time(process: subprocess.Popen[bytes]) -> float:
    try:
        return psutil.Process(process.pid).create_time()
    except psutil.NoSuchProcess as err:
        raise ServingError(f"Java has ended at once with exit status {process.wait()}") from err


def _wait_until_ready(
    state: ServerState,
    folder: StateFolder,
    *,
    options: ServeOptions,
    watch: LogWatch,
    on_progress: Callable[[str], None],
) -> None:
    deadline_s = time.monotonic() + options.timeout_s
    _wait_for_tokens(state, folder, deadline_s=deadline_s)
    with management_client(state, folder) as management:

        def wait(workers: int | None) -> int:
            return wait_for_workers(
                management,
                state.model,
                watch=watch,
                deadline_s=deadline_s,
                workers=workers,
                check_alive=lambda: check_alive(state, folder),
                on_progress=on_progress,
            ).ready_workers

        if options.workers not in (None, wait(None)):  # the archive's minWorkers stands over the configuration
            management.scale(state.model, options.workers or 1)
            try:
                wait(options.workers)
            except OvertakenError as err:  # no reason to end what somebody else uses already
                on_progress(f"warning: {err}")
                wait(None)
    on_progress("asking the golden inputs")
    with inference_client(state, folder) as client:
        check_golden(client, read_golden(options.archive), where=options.archive)


def _wait_for_tokens(state: ServerState, folder: StateFolder, *, deadline_s: float) -> None:
    while state.token_required:
        check_alive(state, folder)
        try:
            read_tokens(folder.key_file)
            return
        except ServingError as err:  # not there yet, or TorchServe is just writing it
            if time.monotonic() > deadline_s:
                raise NotReadyError(f"TorchServe wrote no tokens in time: {err}") from err
        time.sleep(0.1)


def check_alive(state: ServerState, folder: StateFolder) -> None:
    """Raises NotReadyError, with the reason as far as it is known, when a server's frontend has ended."""
    if find_process(state) is not None:
        return
    if not folder.state_file.exists():
        raise NotReadyError(f"TorchServe was stopped by imgcls stop; see {folder.logs}")
    raise NotReadyError(f"TorchServe has ended: {logs.reason_of_end(folder.console_log)}; see {folder.console_log}")
