"""`imgcls archive extract`: unpacks an archive, and nothing outside the folder."""

import json
from pathlib import Path
from typing import Annotated

import typer


def extract(
    archive: Annotated[Path, typer.Argument(help="The .mar file.")],
    folder: Annotated[Path, typer.Argument(help="A new or empty folder; its parent must be there.")],
    *,
    only: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Paths to unpack, as 'golden/*'; * takes slashes too.")
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify/--no-verify", help="Verify it first; one that imgcls has not built cannot be.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Unpacks an archive into a new folder: all of it, or nothing.

    Refuses an archive that is not as it was packed, and any that holds links, paths out of the folder, a path twice or
    far more bytes than a model archive would.
    """
    import zipfile

    from imgcls.archive import contents
    from imgcls.archive.verify import NotVerifiedError, verify_archive
    from imgcls.cli.progress import show_bytes

    contents.refuse_no_file(archive)
    contents.refuse_target(folder)
    size_bytes = archive.stat().st_size
    with show_bytes("unpacking", total=size_bytes * (2 if verify else 1)) as on_bytes:
        if verify:
            try:
                verify_archive(archive, on_bytes=on_bytes)
            except NotVerifiedError as err:
                if not zipfile.is_zipfile(archive):
                    raise
                raise NotVerifiedError(f"{err}; --no-verify unpacks it as it is") from err
        files = contents.extract(archive, folder=folder, only=only, on_bytes=on_bytes)
    if as_json:
        print(
            json.dumps({"archive": str(archive), "folder": str(folder), "verified": verify, "files": files}, indent=2)
        )
    else:
        print(f"unpacked {len(files)} files into {folder}{'' if verify else ', not verified'}")
