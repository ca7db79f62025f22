"""What `imgcls serve`, `status`, `scale` and `stop` do where a gateway stands before the servers."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from imgcls.cli.state import STATE
from imgcls.errors import UsageError

if TYPE_CHECKING:
    from imgcls.gateway.folder import GatewayFolder, SupervisorState
    from imgcls.serving.server import ServeOptions

START_SPARE_S = 30.0  # beyond the servers' own timeout: checks of the archive, Envoy


def serve_gateway(
    options: ServeOptions,
    *,
    settings_file: Path | None,
    port: int | None,
    desired: Path | None,
    is_foreground: bool,
) -> None:
    """Starts the gateway with its servers."""
    from imgcls.desired.file import read_first_table
    from imgcls.gateway.folder import GatewayFolder
    from imgcls.gateway.process import run_background, run_foreground
    from imgcls.gateway.settings import read_settings
    from imgcls.gateway.supervisor import SuperviseOptions
    from imgcls.serving.foreground import StopRequestedError

    settings = read_settings(settings_file)
    if port is not None:
        settings = settings.model_copy(update={"listen": settings.listen.model_copy(update={"port": port})})
    wish = read_first_table(desired, settings) if desired is not None else None
    if not is_foreground:
        timeout_s = options.timeout_s * len(settings.servers) + START_SPARE_S
        # The same command, in the foreground of a process of its own.
        state = run_background(GatewayFolder(options.state), [*sys.argv[1:], "--foreground"], timeout_s=timeout_s)
        print(_describe(state, options.state, is_foreground=False), flush=True)
        return
    try:
        run_foreground(
            SuperviseOptions(serve=options, settings=settings, wish=wish),
            on_ready=lambda state: print(_describe(state, options.state, is_foreground=True), flush=True),
        )
    except StopRequestedError:
        print("stopped", file=sys.stderr, flush=True)


def gateway_of(state: Path) -> GatewayFolder | None:
    """Returns the gateway that was started with a state folder, alive or not; None where there is none."""
    from imgcls.gateway.folder import GatewayFolder

    folder = GatewayFolder(state)
    return folder if folder.read() is not None else None


def stop_gateway(folder: GatewayFolder) -> None:
    """Stops the gateway with its servers, once what is in flight is answered."""
    from imgcls.gateway.process import stop

    print("stopped" if stop(folder) else f"no gateway was running with the state folder {folder.state}")


def tell_gateway(folder: GatewayFolder, *, as_json: bool) -> None:
    """Prints the gateway's status; exits 1 when it is not ready."""
    from imgcls.gateway.report import describe_gateway

    report = describe_gateway(folder)
    print(json.dumps(report.as_dict(), indent=2) if as_json else report.as_text())
    if not report.is_ready:
        raise typer.Exit(1)


def scale_gateway(
    folder: GatewayFolder,
    workers: int | None,
    *,
    name: str | None,
    version: str | None,
    bounds: tuple[int, int],
    timeout_s: float,
    cuts_off: bool,
) -> None:
    """Changes the number of workers on every server; without a number, lets it follow the load between bounds."""
    from imgcls.gateway.gateway import Gateway
    from imgcls.gateway.scaling import scale
    from imgcls.gateway.table import Autoscale

    gateway = Gateway.of(folder, folder.read_running())
    autoscale = None
    if workers is None:
        fewest, most = bounds
        if fewest > most:
            raise UsageError(f"--min is {fewest} and --max {most}; expected --min to be at most --max")
        autoscale = Autoscale(min=fewest, max=most)
        model = gateway.table().choose(name)
        workers = min(most, max(fewest, model.get(version or model.default).workers))
    row = scale(
        gateway,
        workers,
        name=name,
        version=version,
        timeout_s=timeout_s,
        autoscale=autoscale,
        cuts_off=cuts_off,
        on_progress=lambda text: print(text, file=sys.stderr, flush=True),
    )
    follow = f", following the load between {autoscale.min} and {autoscale.max}" if autoscale else ""
    servers = len(gateway.members_of(row.servers))
    print(f"{row.version}: {workers} workers READY on each of {servers} servers{follow}")


def _describe(state: SupervisorState, folder: Path, *, is_foreground: bool) -> str:
    flag = "" if folder.absolute() == STATE.absolute() else f" --state {shlex.quote(str(folder.absolute()))}"
    return "\n".join(
        (
            f"ready at {state.url}",
            f"ask      curl -T FILE {state.url}/predictions/NAME",
            f"health   curl {state.url}/healthz/ready",
            f"status   imgcls status{flag}",
            f"roll     imgcls rollout start ARCHIVE{flag}",
            f"stop     {'Ctrl-C' if is_foreground else f'imgcls stop{flag}'}",
        )
    )
