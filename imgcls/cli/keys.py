"""`imgcls keys`: makes and shows the keys that archives are signed with."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from imgcls.archive.keys import AskPassword

app = typer.Typer(help="Makes and shows the keys that archives are signed with.", no_args_is_help=True)
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class CurveName(StrEnum):
    """The curves that model-signing takes."""

    P256 = "P-256"
    P384 = "P-384"
    P521 = "P-521"


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the pair, and of its signer in reports.")],
    *,
    folder: Annotated[Path, typer.Option(help="Where to write NAME.key and NAME.pub.")] = Path("keys"),
    curve: Annotated[CurveName, typer.Option(help="Elliptic curve.")] = CurveName.P256,
    password: Annotated[
        bool,
        typer.Option("--password", help="Ask for a password. [default: $IMGCLS_KEY_PASSWORD, else none]"),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Creates a key pair; never overwrites a file.

    NAME.key signs and stays with you; NAME.pub goes to the servers, where a trust file names it.
    """
    import os

    from imgcls.archive.keys import PASSWORD_VARIABLE, create_keys

    secret = os.environ.get(PASSWORD_VARIABLE) or None
    if password and secret is None:
        secret = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    pair = create_keys(name, folder, password=secret, curve=curve.value)
    if as_json:
        fields = {"private": str(pair.private), "public": str(pair.public), "fingerprint": pair.fingerprint}
        print(json.dumps(fields | {"has_password": secret is not None}, indent=2))
        return
    protection = "under a password" if secret else "without a password: whoever reads it can sign as you"
    print(f"private      {pair.private}  ({protection})")
    print(f"public       {pair.public}")
    print(f"fingerprint  {pair.fingerprint}")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(help="A private key, a public key or a certificate, in PEM.")],
    *,
    as_json: JsonOption = False,
) -> None:
    """Shows what a key file holds.

    The fingerprint is the one that a signature names its key by, and that `sha256sum NAME.pub` prints.
    """
    from dataclasses import asdict

    from imgcls.archive.keys import describe_file

    found = describe_file(file, ask_password=password_prompt())
    if as_json:
        print(json.dumps(asdict(found), indent=2, default=str))
        return
    print(f"{found.kind}, {found.algorithm}   {found.file}")
    if found.subject:
        print(f"subject      {found.subject}")
    print(f"fingerprint  {found.fingerprint}")
    if found.is_open_to_others:
        print(f"warning: others may read {found.file}; run chmod 600 on it", file=sys.stderr)


def password_prompt() -> AskPassword | None:
    """Returns what asks for a key's password, or None where nobody sits at a terminal."""
    if not sys.stdin.isatty():
        return None
    return lambda path: str(typer.prompt(f"Password of {path}", hide_input=True, err=True))
