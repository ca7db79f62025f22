"""`imgcls archive verify`: whether an archive is, to the byte, what was packed."""

import json
from pathlib import Path
from typing import Annotated

import typer

ARCHIVE = Path("model_store/imgcls.mar")


def verify(
    archive: Annotated[Path, typer.Argument(help="The .mar file.")] = ARCHIVE,
    *,
    trust: Annotated[
        Path | None, typer.Option(help="A trust file: demands what its policy says, a trusted signature for one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Verifies every byte of an archive against its record, and its signature against a trust file.

    Needs no torch and runs nothing of the archive. Exits 1 when it is not as packed, or not signed as demanded.
    """
    from imgcls.archive.trust import check_signatures, detached_signature, load_trust
    from imgcls.archive.verify import verify_archive
    from imgcls.cli.progress import show_bytes

    policy = load_trust(trust)
    with show_bytes("verifying", total=archive.stat().st_size if archive.is_file() else 0) as on_bytes:
        verified = verify_archive(archive, on_bytes=on_bytes)
    signer = check_signatures(archive, policy)
    fields = {
        "archive": str(archive),
        "name": verified.name,
        "version": verified.version,
        "files": len(verified.integrity.files),
        "tree_sha256": verified.integrity.tree_sha256,
        "archive_sha256": verified.archive_sha256,
        "signed": verified.is_signed,
        "detached_signature": detached_signature(archive).exists(),
        "policy": policy.policy,
        "trusted_signer": signer,
    }
    if as_json:
        print(json.dumps(fields, indent=2))
        return
    unchecked = "yes, but not checked: give --trust FILE" if verified.is_signed else "no"
    print(f"{verified.name} {verified.version}: all {len(verified.integrity.files)} files and every byte as packed")
    print(f"tree      sha256 {verified.integrity.tree_sha256}")
    print(f"file      sha256 {fields['archive_sha256']}")
    print(f"signed    {f'by {signer}, which {trust} trusts' if signer else unchecked}")
