"""Whom a server trusts: which trust file holds, and the check of an archive from outside, before Java is started."""

import os
from pathlib import Path

from handler.trust import TrustError, name_in_environment
from imgcls.archive.contents import verify_entries
from imgcls.archive.trust import check_archive_trust, load_trust
from imgcls.errors import UsageError
from imgcls.serving.state import ServerTrust

TRUST_FILE = "trust.yaml"


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


def check_before_start(archive: Path, file: Path | None) -> ServerTrust:
    """Checks an archive against a trust file, where no code of the archive can interfere.

    Raises:
        ArchiveError: it is not what the policy demands.
        UsageError: the trust file cannot be used.
    """
    trust = load_trust(file)
    signer = check_archive_trust(archive, trust)
    if trust.policy == "off":
        verify_entries(archive)  # damage still is an error, though no proof
    return ServerTrust(policy=trust.policy, file=file, signer=signer)
