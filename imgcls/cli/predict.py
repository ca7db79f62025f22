"""`imgcls predict`: classify image files with a running server; needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgcls.cli.answer import print_answer
from imgcls.cli.timeout import timeout_option

if TYPE_CHECKING:
    from imgcls.client import Client, Prediction
    from imgcls.gateway.folder import GatewayFolder


def predict(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILE...", help="Image files, or folders of them.", show_default=False),
    ],
    *,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show, the most probable first.")] = 5,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="IMGCLS_URL",
            help="Of the inference API. [default: the server of --state, or its gateway]",
            show_default=False,
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="IMGCLS_TOKEN",
            help="Inference token, or a gateway's API key. [default: the server's of --state]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model name. [default: the only one of --state, else imgcls]")
    ] = None,
    timeout_s: Annotated[float, timeout_option("Seconds to wait for an answer.", least_s=0.1)] = 60,
    state: Annotated[Path, typer.Option(help="State folder of a server that imgcls serve started.")] = Path(
        ".imgcls/serve"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object a file, in a list.")] = False,
) -> None:
    """Classifies image files with a running server.

    A file that fails is named, the others are still classified, and the exit status is 1.
    """
    from imgcls.client.files import expand_folders
    from imgcls.errors import ClientError

    images = list(expand_folders(files))
    answers: list[dict[str, Any]] = []
    with _make_client(url=url, token=token, model=model, state=state, timeout_s=timeout_s) as client:
        try:
            for image in images:
                answers.append({"file": str(image), **_predict_one(client, image, top_k=top_k, is_quiet=as_json)})
        finally:  # what was answered counts, even where the server has gone away since
            if as_json:
                print_answer(answers, indent=2)
    if failed := sum("error" in answer for answer in answers):
        raise ClientError(f"{failed} of {len(images)} files could not be classified")


def _make_client(*, url: str | None, token: str | None, model: str | None, state: Path, timeout_s: float) -> Client:
    from imgcls.client import Client

    if url is None:
        url, token, model = _look_up_server(state, token=token, model=model)
    return Client(url, token=token, model=model or "imgcls", timeout_s=timeout_s)


def _look_up_server(state: Path, *, token: str | None, model: str | None) -> tuple[str, str | None, str]:
    from imgcls.errors import UsageError

    try:
        from imgcls.cli.gateway_process import gateway_of
        from imgcls.serving.access import inference_token
        from imgcls.serving.state import StateFolder

        gateway = gateway_of(state)
    except ModuleNotFoundError as err:  # a light install, which serves nothing
        raise UsageError(
            f"without {err.name} no server of this machine can be looked up; "
            "give --url and --token, or pip install 'imgcls[serve]'"
        ) from err
    if gateway is not None:  # which decides by its keys and weights who is answered, and by which version
        return gateway.read_running().url, token, model or _only_model(gateway)
    folder = StateFolder(state)
    server = folder.read_running()
    return server.inference_url, token or inference_token(server, folder), model or server.model


def _only_model(gateway: GatewayFolder) -> str:
    from imgcls.errors import UsageError

    names = [each.name for each in gateway.table.read().models]
    if len(names) != 1:
        raise UsageError(f"the gateway serves {', '.join(names) or 'no model'}; name one with --model")
    return names[0]


def _predict_one(client: Client, file: Path, *, top_k: int, is_quiet: bool) -> dict[str, Any]:
    from dataclasses import asdict

    from imgcls.client.errors import ConnectionFailedError, ModelNotFoundError, NotAuthorisedError
    from imgcls.errors import ClientError

    try:
        prediction = client.predict_file(file, top_k=top_k)
    except (ConnectionFailedError, ModelNotFoundError, NotAuthorisedError):
        raise  # every other file would fail in the same way
    except ClientError as err:
        print(f"{file}: {err}", file=sys.stderr, flush=True)
        return {"error": {"kind": type(err).__name__, "reason": str(err)}}
    if not is_quiet:
        print(_format(file, prediction), flush=True)
    answer = asdict(prediction)
    return {"model": answer["model"], "version": answer["version"], "predictions": answer["ranked"]}


def _format(file: Path, prediction: Prediction) -> str:
    return f"{file}: " + ", ".join(f"{entry.label} {entry.probability:.4f}" for entry in prediction.ranked)
