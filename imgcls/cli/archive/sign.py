"""`imgcls archive sign`: who stands for an archive."""

import json
from pathlib import Path
from typing import Annotated

import typer

ARCHIVE = Path("model_store/imgcls.mar")


def sign(
    archive: Annotated[Path, typer.Argument(help="The .mar file.")] = ARCHIVE,
    *,
    key: Annotated[
        Path | None,
        typer.Option(help="Private key in PEM; its password comes from $IMGCLS_KEY_PASSWORD, or is asked for."),
    ] = None,
    certificate: Annotated[Path | None, typer.Option(help="Signing certificate of --key, in PEM.")] = None,
    chain: Annotated[
        list[Path] | None,
        typer.Option(help="Certificate between --certificate and the authority; may be repeated."),
    ] = None,
    sigstore: Annotated[
        bool,
        typer.Option("--sigstore", help="Sign with an identity: $SIGSTORE_ID_TOKEN, a CI job's, or a browser login."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Signs an archive, inside and in ARCHIVE.sig.

    Verifies it first; signatures that it had are replaced. Only --sigstore uses the network.
    """
    from imgcls.archive import signing
    from imgcls.cli.keys import password_prompt
    from imgcls.cli.progress import show_bytes
    from imgcls.errors import UsageError

    if sigstore == (key is not None) or (sigstore and certificate) or (chain and not certificate):
        raise UsageError("name the signer: --key KEY, or --key KEY --certificate CERT [--chain CERT], or --sigstore")
    if certificate and key:
        signer = signing.signer_with_certificate(key, certificate, chain or [], ask_password=password_prompt())
    elif key:
        signer = signing.signer_with_key(key, ask_password=password_prompt())
    else:
        signer = signing.signer_with_sigstore()
    with show_bytes("signing", total=3 * archive.stat().st_size if archive.is_file() else 0) as on_bytes:
        signed = signing.sign_archive(archive, signer, on_bytes=on_bytes)
    if as_json:
        fields = {"archive": str(signed.archive), "signature": str(signed.signature), "signer": signed.signer}
        fields |= {"model": signed.name, "version": signed.version, "tree_sha256": signed.tree_sha256}
        print(json.dumps(fields, indent=2))
        return
    print(f"signed {signed.name} {signed.version} as {signer.name}, {signed.signer}")
    print(f"archive    {signed.archive}")
    print(f"signature  {signed.signature}")
