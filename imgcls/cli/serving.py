"""`imgcls serve`, `status`, `scale`, `stop`: one TorchServe, run from the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from imgcls.serving.server import ServeOptions
    from imgcls.serving.state import ServerState, StateFolder

StateOption = Annotated[Path, typer.Option("--state", help="The server's state folder; a second server needs its own.")]
STATE = Path(".imgcls/serve")


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
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Seconds until it must be ready.")] = 180,
    state: StateOption = STATE,
    java: Annotated[
        str | None,
        typer.Option(
            help="embedded, system, or a Java home. [default: $IMGCLS_JAVA, else embedded]", show_default=False
        ),
    ] = None,
) -> None:
    """Starts TorchServe with an archive, and returns once its workers answer the archive's golden inputs right."""
    from imgcls.serving.server import ServeOptions

    options = ServeOptions(
        archive=archive,
        config=ts_config,
        state=state,
        port=port,
        workers=workers,
        java=java,
        timeout_s=timeout_s,
        dies_with_parent=foreground,
    )
    _serve(options, is_foreground=foreground)


def status(
    *,
    state: StateOption = STATE,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Shows the server's model, workers, queue and ports; exits 1 when it is not ready or gone."""
    from imgcls.serving.report import describe_server
    from imgcls.serving.state import StateFolder

    report = describe_server(StateFolder(state))
    print(json.dumps(report.as_dict(), indent=2) if as_json else report.as_text())
    if not report.is_ready:
        raise typer.Exit(1)


def scale(
    workers: Annotated[int, typer.Argument(min=1, help="How many worker processes.")],
    *,
    name: Annotated[str | None, typer.Option(help="The model. [default: the one that was served]")] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Seconds until all must be ready.")] = 180,
    state: StateOption = STATE,
) -> None:
    """Changes the number of workers and waits until all are READY; fewer workers drop their batches in flight."""
    from imgcls.serving.errors import WorkerFailedError
    from imgcls.serving.server import scale as scale_server
    from imgcls.serving.state import StateFolder

    try:
        model = scale_server(StateFolder(state), workers, name=name, timeout_s=timeout_s, on_progress=_tell)
    except WorkerFailedError as err:
        print(err.details, file=sys.stderr)
        raise
    print(f"{model.model_name} {model.model_version}: {model.ready_workers} workers READY")


def stop(*, state: StateOption = STATE) -> None:
    """Stops the server with all its workers; stopping twice does no harm."""
    from imgcls.serving.server import stop as stop_server
    from imgcls.serving.state import StateFolder

    folder = StateFolder(state)
    print("stopped" if stop_server(folder) else f"no server was running with the state folder {folder.path}")


def _serve(options: ServeOptions, *, is_foreground: bool) -> None:
    from imgcls.serving.errors import WorkerFailedError
    from imgcls.serving.foreground import StopRequestedError, follow, signals_raise
    from imgcls.serving.server import start
    from imgcls.serving.server import stop as stop_server
    from imgcls.serving.state import StateFolder

    folder = StateFolder(options.state)
    server = None
    with signals_raise():
        try:
            server = start(options, on_progress=_tell)
            print(_describe_start(server, folder, is_foreground=is_foreground), flush=True)
            if is_foreground:
                follow(server, folder, write=lambda line: print(line, flush=True))
        except WorkerFailedError as err:
            print(err.details, file=sys.stderr)
            raise
        except StopRequestedError as err:
            if server is not None:  # an interrupted start has cleaned up by itself; a server of someone else stays
                stop_server(folder)
            _tell("stopped")
            if not is_foreground:  # asked to start a server, and there is none
                raise typer.Exit(128 + err.number) from err


def _describe_start(server: ServerState, folder: StateFolder, *, is_foreground: bool) -> str:
    flag = "" if folder.path == STATE.absolute() else f" --state {folder.path}"
    read_token = f"""python3 -c "import json; print(json.load(open('{folder.key_file}'))['inference']['key'])\""""
    header = f'-H "Authorization: Bearer $({read_token})" ' if server.token_required else ""
    return "\n".join(
        (
            f"{server.model} {server.version} is ready at {server.inference_url}",
            f"predict  imgcls predict{flag} FILE",
            f"         curl {header}-H 'Content-Type: application/octet-stream' "
            f"--data-binary @FILE {server.inference_url}/predictions/{server.model}",
            f"logs     {folder.logs}",
            "stop     Ctrl-C" if is_foreground else f"stop     imgcls stop{flag}",
        )
    )


def _tell(text: str) -> Any:
    print(text, file=sys.stderr, flush=True)
