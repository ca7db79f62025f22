"""The check of an archive from outside, before Java is started."""

from pathlib import Path

from imgcls.archive.contents import verify_entries
from imgcls.archive.trust import check_archive_trust, load_trust
from imgcls.serving.state import ServerTrust


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
