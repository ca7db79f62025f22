"""`imgcls archive verify`: whether an archive is, to the byte, what was packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls.cli.answer import print_answer
from imgcls.errors import ImgclsError

if TYPE_CHECKING:
    from handler.trust import Trust
    from imgcls.archive.verify import VerifiedArchive

ARCHIVE = Path("model_store/imgcls.mar")
CONFIG = Path("config.properties")  # that of imgcls serve: a trust.yaml beside it holds


def verify(
    archive: Annotated[Path, typer.Argument(help="The .mar file.")] = ARCHIVE,
    *,
    trust: Annotated[
        Path | None,
        typer.Option(
            help="A trust file: demands what its policy says, a trusted signature for one. "
            "[default: as for imgcls serve, $IMGCLS_TRUST, else ./trust.yaml, else none]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, also where it fails.")] = False,
) -> None:
    """Verifies every byte of an archive against its record, and its signature against a trust file.

    Needs no torch and runs nothing of the archive. Exits 1 when it is not as packed, or not signed as demanded.
    """
    from imgcls.archive.trust import check_signatures, detached_signature, find_trust_file, load_trust
    from imgcls.archive.verify import NotVerifiedError, verify_archive
    from imgcls.cli.progress import show_bytes

    file = trust
    try:
        file = trust or find_trust_file(None, config=CONFIG)
        policy = load_trust(file)
        with show_bytes("verifying", total=archive.stat().st_size if archive.is_file() else 0) as on_bytes:
            verified = verify_archive(archive, on_bytes=on_bytes)
        try:
            signer = check_signatures(archive, policy)
        except NotVerifiedError as err:
            raise NotVerifiedError(f"{err} (trust file: {file or 'none'})") from err
        archive_sha256 = verified.archive_sha256
    except (ImgclsError, OSError) as err:
        if as_json:
            fields = {"archive": str(archive), "verified": False, "trust_file": str(file) if file else None}
            fields |= {"problem": str(err), "error": str(err), "kind": type(err).__name__}
            print_answer(fields, indent=2)
        raise
    if not as_json:
        _print(verified, archive_sha256=archive_sha256, file=file, policy=policy, signer=signer)
        return
    fields = {
        "archive": str(archive),
        "verified": True,
        "name": verified.name,
        "version": verified.version,
        "files": len(verified.integrity.files),
        "tree_sha256": verified.integrity.tree_sha256,
        "archive_sha256": archive_sha256,
        "signed": verified.is_signed,
        "detached_signature": detached_signature(archive.resolve()).exists(),
        "trust_file": str(file) if file else None,
        "policy": policy.policy,
        "trusted_signer": signer,
    }
    print(json.dumps(fields, indent=2))


def _print(
    verified: VerifiedArchive, *, archive_sha256: str, file: Path | None, policy: Trust, signer: str | None
) -> None:
    if signer:
        from imgcls.archive.scanning.findings import make_printable

        signed = f"by {make_printable(signer)}, which {file} trusts"
    elif not verified.is_signed:
        signed = "no"
    elif file:
        signed = f"yes, but not checked: {file}'s policy is {policy.policy}"
    else:
        signed = "yes, but not checked: give --trust FILE"
    # Name and version are harmless: others than a build takes are not verified.
    files = len(verified.integrity.files)
    print(f"{verified.name} {verified.version}: all {files} files and every byte as packed")
    print(f"tree      sha256 {verified.integrity.tree_sha256}")
    print(f"file      sha256 {archive_sha256}")
    print(f"trust     {f'{file}, policy {policy.policy}' if file else 'no trust file, policy hash'}")
    print(f"signed    {signed}")
