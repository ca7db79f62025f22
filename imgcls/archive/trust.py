"""Checks a packed archive against a trust file, from outside, where no code of the archive can interfere. No torch.

Called by `imgcls archive verify` and by `imgcls serve` before it starts Java. `handler.trust` is what both sides share.
"""

import tempfile
import zipfile
from pathlib import Path

from handler.integrity import INTEGRITY_FILE, SIGNATURE_FILE, IntegrityError
from handler.layout import OnBytes
from handler.trust import Trust, TrustError, read_bundle, read_trust, refuse_other_content, verify_signature
from imgcls.archive.verify import verify_archive
from imgcls.errors import ArchiveError, UsageError


def detached_signature(mar: Path) -> Path:
    """Returns where an archive's detached signature lies."""
    return mar.with_name(f"{mar.name}.sig")


def load_trust(path: Path | None) -> Trust:
    """Reads a trust file for a command; without one the policy is `hash`.

    Raises:
        UsageError: it cannot be used.
    """
    try:
        return read_trust(path)
    except TrustError as err:
        raise UsageError(str(err)) from err


def check_archive_trust(mar: Path, trust: Trust, *, on_bytes: OnBytes = lambda count: None) -> str | None:
    """Checks a packed archive from outside, where no code of it can interfere.

    Under `hash`: every byte is as it was packed, and a detached signature beside it, by whomever, is of these bytes.
    Under `signed` moreover: the inner signature, and the detached one where there is one, are by someone trusted.

    Returns:
        The signer under `signed`, else None.

    Raises:
        ArchiveError: names the archive, the entry and the reason.
        UsageError: a key or certificate that the trust file names cannot be used.
    """
    if trust.policy == "off":
        return None
    verify_archive(mar.resolve(), on_bytes=on_bytes)
    return check_signatures(mar, trust)


def check_signatures(mar: Path, trust: Trust) -> str | None:
    """Does what `check_archive_trust` does for an archive that `verify_archive` has verified just now."""
    if trust.policy == "off":
        return None
    mar = mar.resolve()
    detached = detached_signature(mar)
    try:
        if trust.policy == "hash":
            if detached.exists():
                refuse_other_content(mar, read_bundle(detached, name=detached.name), name=detached.name)
            return None
        with tempfile.TemporaryDirectory() as temporary:
            record, signature = unpack_record(mar, Path(temporary))
            signer = verify_signature(record, signature, trust, name=SIGNATURE_FILE)
        if detached.exists():
            verify_signature(mar, detached, trust, name=detached.name)
    except TrustError as err:
        raise UsageError(str(err)) from err
    except IntegrityError as err:
        raise ArchiveError(f"{mar}: {err}; do not serve it") from err
    return signer


def unpack_record(mar: Path, folder: Path) -> tuple[Path, Path]:
    """Copies the record, and the inner signature where there is one, out of an archive that was verified."""
    record, signature = folder / Path(INTEGRITY_FILE).name, folder / Path(SIGNATURE_FILE).name
    with zipfile.ZipFile(mar) as archive:
        record.write_bytes(archive.read(INTEGRITY_FILE))
        if SIGNATURE_FILE in archive.namelist():
            signature.write_bytes(archive.read(SIGNATURE_FILE))
    return record, signature
