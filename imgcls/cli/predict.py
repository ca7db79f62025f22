"""`imgcls predict`: classify image files with a running server; needs no torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from imgcls.client import Client, Prediction


def predict(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Image files.", show_default=False)],
    *,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show, the most probable first.")] = 5,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="IMGCLS_URL", help="Of the inference API. [default: the server of --state]", show_default=False
        ),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="IMGCLS_TOKEN", help="Inference token. [default: the server's of --state]", show_default=False
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model name. [default: the server's of --state, else imgcls]")
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds to wait for an answer.")] = 60,
    state: Annotated[Path, typer.Option(help="State folder of a server that imgcls serve started.")] = Path(
        ".imgcls/serve"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: one object a file, in a list.")] = False,
) -> None:
    """Classifies image files; one that fails is named, the others are still classified, and the exit status is 1."""
    from imgcls.errors import ClientError

    with _make_client(url=url, token=token, model=model, state=state, timeout_s=timeout_s) as client:
        answers = {file: _predict_one(client, file, top_k=top_k, is_quiet=as_json) for file in files}
    if as_json:
        print(json.dumps([{"file": str(file), **answer} for file, answer in answers.items()], indent=2))
    failed = [file for file, answer in answers.items() if "error" in answer]
    if failed:
        raise ClientError(f"{len(failed)} of {len(files)} files could not be classified")


def _make_client(*, url: str | None, token: str | None, model: str | None, state: Path, timeout_s: float) -> Client:
    from imgcls.client import Client

    if url is None:
        from imgcls.serving.access import inference_token
        from imgcls.serving.state import StateFolder

        folder = StateFolder(state)
        server = folder.read_running()
        url, model = server.inference_url, model or server.model
        token = token or inference_token(server, folder)
    return Client(url, token=token, model=model or "imgcls", timeout_s=timeout_s)


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
