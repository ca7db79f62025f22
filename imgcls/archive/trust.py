"""Checks a packed archive against a trust file, from outside, where no code of the archive can interfere. No torch.

Called by `imgcls archive verify` and `inspect`, and by `imgcls serve` before it starts Java. `handler.trust` is what
both sides share.
"""

import logging
import os
import tempfile
import zipfile
from pathlib import Path

import yaml

from handler.integrity import INTEGRITY_FILE, SIGNATURE_FILE, IntegrityError
from handler.layout import OnBytes
from handler.trust import (
    Trust,
    TrustError,
    name_in_environment,
    read_bundle,
    read_trust,
    refuse_other_content,
    verify_signature,
)
from imgcls.archive.verify import NotVerifiedError, verify_archive
from imgcls.errors import UsageError

TRUST_FILE = "trust.yaml"
EXAMPLE = "{policy: signed, keys: [keys/release.pub]}"
SIGNERS = ("keys", "certificates", "identities")  # of a trust file

log = logging.getLogger(__name__)


def detached_signature(mar: Path) -> Path:
    """Returns where an archive's detached signature lies."""
    return mar.with_name(f"{mar.name}.sig")


def find_trust_file(choice: Path | None, *, config: Path) -> Path | None:
    """Returns the trust file that holds: the chosen one, $IMGCLS_TRUST's, or trust.yaml beside the configuration.

    Raises:
        UsageError: $IMGCLS_TRUST is set and empty.
    """
    if choice is not None:
        return choice.absolute()
    try:
        named = name_in_environment()
    except TrustError as err:
        raise UsageError(str(err)) from err
    if named is not None:
        return Path(named).absolute()
    beside = config.absolute().parent / TRUST_FILE
    is_there = os.path.lexists(beside)  # a link to nowhere too: reading it fails, where `hash` would say nothing
    return beside if is_there else None


def load_trust(path: Path | None) -> Trust:
    """Reads a trust file for a command; without one the policy is `hash`.

    Logs a warning where it names signers that its policy asks for no signature of.

    Raises:
        UsageError: it cannot be used.
    """
    try:
        trust = read_trust(path)
    except TrustError as err:
        is_unreadable = isinstance(err.__cause__, OSError | yaml.YAMLError)
        raise UsageError(f"{err}; write one: {EXAMPLE}" if is_unreadable else str(err)) from err
    unused = [name for name in SIGNERS if getattr(trust, name)]
    if trust.policy != "signed" and unused:
        log.warning(
            "warning: %s: its policy is %s, which asks for no signature; its %s go unused; write policy: signed",
            *(path, trust.policy, " and ".join(unused)),
        )
    return trust


def check_archive_trust(mar: Path, trust: Trust, *, on_bytes: OnBytes = lambda count: None) -> str | None:
    """Checks a packed archive from outside, where no code of it can interfere.

    Under `hash`: every byte is as it was packed, and a detached signature beside it, by whomever, is of these bytes.
    Under `signed` moreover: the inner signature, and the detached one where there is one, are by someone trusted.

    Returns:
        The signer under `signed`, else None.

    Raises:
        NotVerifiedError: names the archive, the entry and the reason.
        ArchiveError: it cannot be read.
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
        raise NotVerifiedError(f"{mar}: {err}; do not serve it") from err
    return signer


def unpack_record(mar: Path, folder: Path) -> tuple[Path, Path]:
    """Copies the record, and the inner signature where there is one, out of an archive that was verified."""
    record, signature = folder / Path(INTEGRITY_FILE).name, folder / Path(SIGNATURE_FILE).name
    with zipfile.ZipFile(mar) as archive:
        record.write_bytes(archive.read(INTEGRITY_FILE))
        if SIGNATURE_FILE in archive.namelist():
            signature.write_bytes(archive.read(SIGNATURE_FILE))
    return record, signature
