"""`imgcls serve`, `status`, `scale`, `stop`: one TorchServe, run from the command line."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls.cli.gateway_process import gateway_of, scale_gateway, serve_gateway, stop_gateway, tell_gateway
from imgcls.cli.state import STATE, StateOption
from imgcls.cli.timeout import timeout_option
from imgcls.errors import UsageError

if TYPE_CHECKING:
    from imgcls.serving.state import ServerState, StateFolder


def serve(
    archive: Annotated[Path, typer.Argument(help="The .mar file; its folder becomes the model store.")] = Path(
        "model_store/imgcls.mar"
    ),
    *,
    ts_config: Annotated[Path, typer.Option(help="TorchServe's settings; never changed.")] = Path("config.properties"),
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Worker processes. [default: the archive's minWorkers, else one a core or GPU]"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="First of five ports: inference, management, metrics, gRPC twice. 0: free ones. [default: the file's]"
        ),
    ] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground/--detach", help="Stay, and stop the server on Ctrl-C or SIGTERM.")
    ] = False,
    timeout_s: Annotated[float, timeout_option("Seconds until it must be ready.")] = 180,
    state: StateOption = STATE,
    java: Annotated[
        str | None,
        typer.Option(
            help="embedded, system, or a Java home. [default: $IMGCLS_JAVA, else embedded]", show_default=False
        ),
    ] = None,
    trust: Annotated[
        Path | None,
        typer.Option(
            help="Trust file: whose archives are served. [default: $IMGCLS_TRUST, else trust.yaml beside --ts-config, "
            "else every archive that is as it was packed]",
            show_default=False,
        ),
    ] = None,
    gateway: Annotated[
        bool, typer.Option("--gateway", help="Put Envoy in front, and keep both alive; needed to roll versions.")
    ] = False,
    gateway_config: Annotated[
        Path | None,
        typer.Option(help="The gateway's settings. [default: gateway.yaml, where there is one]", show_default=False),
    ] = None,
    gateway_port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="The one public port. 0: a free one. [default: the file's, 8000]"),
    ] = None,
    desired: Annotated[
        Path | None,
        typer.Option(
            help="Behind a gateway that has served nothing yet: what to serve, instead of ARCHIVE; see imgcls apply.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Starts TorchServe with an archive and waits until ready.

    It is ready once all its workers run and the archive's golden inputs are answered right.
    """
    from imgcls.serving.capacity import refuse_workers
    from imgcls.serving.foreground import StopRequestedError
    from imgcls.serving.foreground import serve as serve_archive
    from imgcls.serving.server import ServeOptions
    from imgcls.serving.state import StateFolder

    if workers is not None:
        refuse_workers(workers, what="--workers")
    folder = StateFolder(state)
    options = ServeOptions(
        archive=archive,
        config=ts_config,
        state=state,
        port=port,
        workers=workers,
        java=java,
        trust=trust,
        timeout_s=timeout_s,
        dies_with_parent=foreground,
    )
    if gateway:
        serve_gateway(
            options, settings_file=gateway_config, port=gateway_port, desired=desired, is_foreground=foreground
        )
        return
    if (gateway_config, gateway_port, desired) != (None, None, None):
        raise UsageError("--gateway-config, --gateway-port and --desired are of the gateway; add --gateway")
    try:
        with _worker_output_shown():
            serve_archive(
                options,
                is_foreground=foreground,
                on_progress=_tell,
                on_ready=lambda server: _print(_describe_start(server, folder, is_foreground=foreground)),
                on_log_line=_print,
            )
    except StopRequestedError as err:
        _tell("stopped")
        if not foreground:  # asked to start a server, and there is none
            raise typer.Exit(128 + err.number) from err


def status(
    *,
    state: StateOption = STATE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows the server's model, workers, queue and ports.

    Exits 1 when it is not ready or gone.
    """
    from imgcls.serving.report import describe_server
    from imgcls.serving.state import StateFolder

    if (gateway := gateway_of(state)) is not None:
        tell_gateway(gateway, as_json=as_json)
        return
    report = describe_server(StateFolder(state))
    print(json.dumps(report.as_dict(), indent=2) if as_json else report.as_text())
    if not report.is_ready:
        raise typer.Exit(1)


def scale(
    workers: Annotated[int | None, typer.Argument(min=1, help="How many worker processes.", show_default=False)] = None,
    *,
    auto: Annotated[
        bool, typer.Option("--auto", help="Behind a gateway: let the number follow the load, until a number is set.")
    ] = False,
    fewest: Annotated[int, typer.Option("--min", min=1, help="With --auto: never fewer, on each server.")] = 1,
    most: Annotated[int, typer.Option("--max", min=1, max=1000, help="With --auto: never more.")] = 4,
    name: Annotated[str | None, typer.Option(help="The model. [default: the one that was served]")] = None,
    version: Annotated[
        str | None, typer.Option(help="Behind a gateway: which version of it. [default: the default one]")
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Behind a gateway: take workers away even while they are at work.")
    ] = False,
    timeout_s: Annotated[float, timeout_option("Seconds until all must be ready.")] = 180,
    state: StateOption = STATE,
) -> None:
    """Changes the number of workers and waits for them.

    A worker that is taken away drops its batch in flight; behind a gateway, it is drained before. The threads of each
    worker stay as they were at start.
    """
    from imgcls.serving.capacity import refuse_workers
    from imgcls.serving.server import scale as scale_server
    from imgcls.serving.state import StateFolder

    if auto == (workers is not None):
        raise UsageError("expected a number of workers, or --auto, and not both")
    refuse_workers(most if workers is None else workers, what="--max" if workers is None else "the number of workers")
    if (gateway := gateway_of(state)) is not None:
        bounds = (fewest, most)
        scale_gateway(gateway, workers, name=name, version=version, bounds=bounds, timeout_s=timeout_s, cuts_off=force)
        return
    if version is not None or workers is None or force:
        raise UsageError(
            "--version, --force and --auto are of a gateway with its versions; start one with imgcls serve --gateway"
        )
    with _worker_output_shown():
        model = scale_server(StateFolder(state), workers, name=name, timeout_s=timeout_s, on_progress=_tell)
    _tell("note: the threads of each worker stay as they were when the server started")
    print(f"{model.model_name} {model.model_version}: {model.ready_workers} workers READY")


def stop(*, state: StateOption = STATE) -> None:
    """Stops the server with all its workers.

    Stopping twice does no harm.
    """
    from imgcls.serving.server import stop as stop_server
    from imgcls.serving.state import StateFolder

    if (gateway := gateway_of(state)) is not None:
        stop_gateway(gateway)
        return
    folder = StateFolder(state)
    print("stopped" if stop_server(folder) else f"no server was running with the state folder {folder.path}")


@contextmanager
def _worker_output_shown() -> Iterator[None]:
    """Prints what a worker wrote before it died, above the error's own line."""
    from imgcls.serving.errors import WorkerFailedError

    try:
        yield
    except WorkerFailedError as err:
        _tell(err.details)
        raise


def _describe_start(server: ServerState, folder: StateFolder, *, is_foreground: bool) -> str:
    flag = "" if folder.path == STATE.absolute() else f" --state {shlex.quote(str(folder.path))}"
    script = """import json, sys; print(json.load(open(sys.argv[1]))["inference"]["key"])"""
    read_token = shlex.join(["python3", "-c", script, str(folder.key_file)])
    header = f'-H "Authorization: Bearer $({read_token})" ' if server.token_required else ""
    return "\n".join(
        (
            f"{server.model} {server.version} is ready at {server.inference_url}",
            f"predict  imgcls predict{flag} FILE",
            f"         curl {header}-H 'Content-Type: application/octet-stream' "
            f"--data-binary @FILE {server.inference_url}/predictions/{server.model}",
            *([f"trust    {server.trust}"] if server.trust else []),
            f"logs     {folder.logs}",
            "stop     Ctrl-C" if is_foreground else f"stop     imgcls stop{flag}",
        )
    )


def _print(text: str) -> None:
    print(text, flush=True)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
