"""`imgcls gateway`: what belongs to the front door and not to one server. So far: API keys."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from datetime import datetime

    from imgcls.gateway.keys import ApiKey

app = typer.Typer(help="The gateway before the servers: API keys.", no_args_is_help=True)
keys_app = typer.Typer(help="Makes, shows and revokes the API keys of the gateway's clients.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
NameArgument = Annotated[str, typer.Argument(help="Name of the key: it stands for the client in logs and limits.")]
FileOption = Annotated[Path, typer.Option(help="The key file; access.keys in gateway.yaml names it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_FILE = Path("keys.yaml")


@keys_app.command()
def create(
    name: NameArgument,
    *,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="Valid for so long, such as 90d, 12h or 4w. [default: for ever]")
    ] = None,
    requests_per_s: Annotated[
        float | None,
        typer.Option("--requests-per-s", help="Limit. [default: limits.client_requests_per_s of gateway.yaml]"),
    ] = None,
    burst: Annotated[
        int | None, typer.Option(help="Requests at once before the limit counts. [default: those of a second]")
    ] = None,
    model: Annotated[
        list[str] | None, typer.Option(help="A model that the key may ask; repeat for more. [default: all]")
    ] = None,
    file: FileOption = DEFAULT_FILE,
    as_json: JsonOption = False,
) -> None:
    """Creates a key and prints it, this once: the file holds only its hash.

    A gateway that runs takes it within seconds.
    """
    from imgcls.gateway.keys import create_key, expiry_after

    secret, key = create_key(
        file,
        name,
        expires=expiry_after(expires) if expires is not None else None,
        requests_per_s=requests_per_s,
        burst=burst,
        models=tuple(model) if model else None,
    )
    if as_json:
        print(json.dumps({"key": secret} | _fields(key), indent=2))
        return
    print(secret)
    until = f"until {_when(key.expires)}" if key.expires else "without an end"
    print(f"{name}: valid {until}; written to {file} as a hash, so keep the key now", file=sys.stderr)


@keys_app.command("list")
def list_keys(*, file: FileOption = DEFAULT_FILE, as_json: JsonOption = False) -> None:
    """Lists the keys with their state; the keys themselves are known to nobody but their clients."""
    from imgcls.gateway.keys import is_open_to_others, read_keys

    keys = read_keys(file)
    if as_json:
        print(json.dumps([_fields(key) for key in keys], indent=2))
    elif keys:
        _print_table(keys)
    else:
        print(f"no keys in {file}; make one with imgcls gateway keys create NAME", file=sys.stderr)
    if is_open_to_others(file):
        print(f"warning: others may read or change {file}; run chmod 600 on it", file=sys.stderr)


@keys_app.command()
def revoke(name: NameArgument, *, file: FileOption = DEFAULT_FILE, as_json: JsonOption = False) -> None:
    """Revokes a key; a gateway that runs refuses it within seconds. Its name stays taken."""
    from imgcls.gateway.keys import revoke_key

    key = revoke_key(file, name)
    print(json.dumps(_fields(key), indent=2) if as_json else f"{name}: revoked {_when(key.revoked)}")


def _print_table(keys: tuple[ApiKey, ...]) -> None:
    from datetime import UTC, datetime

    from rich.console import Console
    from rich.table import Table

    table = Table("name", "state", "created", "expires", "requests/s", "burst", "models", box=None, pad_edge=False)
    now = datetime.now(UTC)
    for key in keys:
        rate = f"{key.requests_per_s:g}" if key.requests_per_s else "-"
        models = ", ".join(key.models) if key.models else "all"
        dates = (_when(key.created), _when(key.expires))
        table.add_row(key.name, key.status(now), *dates, rate, str(key.burst or "-"), models)
    Console(highlight=False, markup=False).print(table)


def _fields(key: ApiKey) -> dict[str, Any]:
    """Returns what a listing shows; the hash is of no use to a reader."""
    from datetime import UTC, datetime

    return {"status": key.status(datetime.now(UTC))} | key.model_dump(mode="json", exclude={"sha256"})


def _when(moment: datetime | None) -> str:
    return moment.strftime("%Y-%m-%d %H:%MZ") if moment else "-"
