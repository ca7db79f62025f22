"""Signs an archive; `imgcls.archive.trust` checks it.

    NAME.mar        MAR-INF/integrity.json.sig   over MAR-INF/integrity.json, for workers, who see the unpacked tree
    NAME.mar.sig    beside it                    over the bytes of NAME.mar, for anybody with OpenSSF model-signing

Both are bundles of OpenSSF model-signing. Signing and checking with a key or a certificate asks no network.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from handler.integrity import IntegrityError, parse_integrity
from handler.layout import OnBytes
from handler.packed import UNREADABLE_ZIP
from handler.trust import read_bundle
from imgcls.archive.contents import refuse_no_file
from imgcls.archive.keys import AskPassword, read_private_key
from imgcls.archive.trust import check_archive_trust, check_signatures, detached_signature, load_trust, unpack_record
from imgcls.archive.verify import verify_archive
from imgcls.errors import ArchiveError

if TYPE_CHECKING:
    from model_signing.signing import Config

__all__ = [
    "SignedArchive",
    "Signer",
    "check_archive_trust",  # what undoes this module, for those who look here
    "check_signatures",
    "load_trust",
    "sign_archive",
    "signer_with_certificate",
    "signer_with_key",
    "signer_with_sigstore",
]
TOKEN_VARIABLE = "SIGSTORE_ID_TOKEN"
CHANGED = "was changed while it was signed, so nothing was put in place; sign it again"


@dataclass(frozen=True)
class SignedArchive:
    """An archive and its detached signature, as they were put in place."""

    archive: Path
    signature: Path
    name: str
    version: str
    signer: str
    tree_sha256: str


@dataclass(frozen=True)
class Signer:
    """Who signs; a signer that cannot is found out when it is made, before anything is read or written."""

    name: str
    config: "Config"

    def sign(self, content: Path, signature: Path) -> None:
        """Writes the signature of a file.

        Raises:
            ArchiveError: it cannot be made; with Sigstore, for want of a network or a login.
        """
        try:
            self.config.sign(content, signature)
        except Exception as err:  # what Sigstore's login, its authorities and the network raise has no common class
            reason = " ".join(str(err).split()) or type(err).__name__
            raise ArchiveError(f"{content.name} could not be signed by {self.name}: {reason}") from err


def signer_with_key(key: Path, *, ask_password: AskPassword | None = None) -> Signer:
    """Returns who signs with a private key.

    Raises:
        ArchiveError: the key cannot be used, or its password is missing.
    """
    with _decrypted(key, ask_password=ask_password) as pipe:
        return Signer(key.stem, _new_config().use_elliptic_key_signer(private_key=pipe))


def signer_with_certificate(
    key: Path, certificate: Path, chain: Sequence[Path], *, ask_password: AskPassword | None = None
) -> Signer:
    """Returns who signs with a certificate.

    Args:
        key: the certificate's private key.
        certificate: of the signer, in PEM.
        chain: what stands between it and the authority that servers trust.
        ask_password: see imgcls.archive.keys.read_private_key.

    Raises:
        ArchiveError: a file cannot be used, or the key is not the certificate's.
    """
    for file in (certificate, *chain):
        if not file.is_file():
            raise ArchiveError(f"{file}: there is no such certificate")
    with _decrypted(key, ask_password=ask_password) as pipe:
        try:
            config = _new_config().use_certificate_signer(
                private_key=pipe,
                signing_certificate=certificate,
                certificate_chain=chain or [certificate],  # model-signing 1.1.1 cannot read an empty one
            )
        except ValueError as err:
            raise ArchiveError(f"{certificate}: cannot be used with {key}: {' '.join(str(err).split())}") from err
    return Signer(certificate.stem, config)


def signer_with_sigstore() -> Signer:
    """Returns who signs with Sigstore: $SIGSTORE_ID_TOKEN, the identity of a CI job, or a login in the browser.

    Raises:
        ArchiveError: Sigstore's roots cannot be fetched.
    """
    try:
        config = _new_config().use_sigstore_signer(
            use_ambient_credentials=True, identity_token=os.environ.get(TOKEN_VARIABLE) or None
        )
    except Exception as err:  # as in Signer.sign
        reason = " ".join(str(err).split()) or type(err).__name__
        raise ArchiveError(f"Sigstore cannot be reached ({reason}); it needs a network, --key does not") from err
    return Signer("Sigstore", config)


def sign_archive(mar: Path, signer: Signer, *, on_bytes: OnBytes = lambda count: None) -> SignedArchive:
    """Verifies an archive, then signs it inside and beside; signatures that it had are replaced.

    `on_bytes` is told of each byte three times: when it is verified, when it is copied, and when the copy is verified.

    Everything is prepared before the first file is moved, and the copy that is moved was verified itself. A crash while
    files are moved leaves the old archive or the new one, whole, without a detached signature: never one that belongs
    to other bytes. Other commands of imgcls that change the folder wait; what others do to the archive is noticed.

    Raises:
        ArchiveError: the archive is not what its record says, is changed meanwhile, cannot be signed, or its folder
            cannot be written or locked.
    """
    from imgcls.archive.publish import SIGNING, lock_store, sweep_store

    refuse_no_file(mar)
    mar = mar.resolve()  # behind a link both files belong beside the archive itself
    try:
        with lock_store(mar.parent):
            sweep_store(mar.parent, name=mar.stem)
            with tempfile.TemporaryDirectory(prefix=f".{mar.stem}-", suffix=SIGNING, dir=mar.parent) as temporary:
                return _sign_locked(mar, signer, Path(temporary), on_bytes=on_bytes)
    except OSError as err:
        raise ArchiveError(f"{mar}: the signed archive cannot be written: {err}") from err


def _sign_locked(mar: Path, signer: Signer, folder: Path, *, on_bytes: OnBytes) -> SignedArchive:
    """Signs in a folder that only this process writes to, then moves both files."""
    from imgcls.archive.publish import add_signature, publish

    target, stamp = detached_signature(mar), _stamp(mar)
    verified = verify_archive(mar, on_bytes=on_bytes)
    tree_sha256 = verified.integrity.tree_sha256
    signed, detached = folder / mar.name, folder / target.name
    with _refusing_change(mar):
        record, signature = unpack_record(mar, folder)
        signature.unlink(missing_ok=True)
        if parse_integrity(record.read_bytes()).tree_sha256 != tree_sha256:  # by it the record is known to the byte
            raise IntegrityError("another archive")
    signer.sign(record, signature)
    with _refusing_change(mar):
        add_signature(mar, signature.read_bytes(), signed, on_bytes=on_bytes)
    _refuse_other_tree(mar, signed, tree_sha256=tree_sha256, on_bytes=on_bytes)
    signer.sign(signed, detached)
    name = read_bundle(detached, name=target.name).signer
    if _stamp(mar) != stamp:
        raise ArchiveError(f"{mar}: {CHANGED}")
    target.unlink(missing_ok=True)
    publish(signed, mar)
    publish(detached, target)
    return SignedArchive(mar, target, verified.name, verified.version, name, tree_sha256)


def _refuse_other_tree(mar: Path, signed: Path, *, tree_sha256: str, on_bytes: OnBytes) -> None:
    """Verifies the signed copy, which nobody else can write to, against what was verified before it was made."""
    try:
        copied = verify_archive(signed, on_bytes=on_bytes)
    except ArchiveError as err:
        raise ArchiveError(f"{mar}: {CHANGED}") from err
    if copied.integrity.tree_sha256 != tree_sha256:
        raise ArchiveError(f"{mar}: {CHANGED}")


@contextmanager
def _refusing_change(mar: Path) -> Iterator[None]:
    """What was verified can be read again; where it cannot, or is another, the file was changed in between."""
    try:
        yield
    except (IntegrityError, *UNREADABLE_ZIP) as err:
        if isinstance(err, OSError) and not isinstance(err, FileNotFoundError):
            raise  # of the disk, which is no change
        raise ArchiveError(f"{mar}: {CHANGED}") from err


def _stamp(file: Path) -> tuple[int, int, int, int] | None:
    """What differs once a file was replaced, written to or removed."""
    try:
        stat = file.stat()
    except FileNotFoundError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def _new_config() -> "Config":
    from model_signing import signing

    return signing.Config()  # type: ignore[no-untyped-call]


@contextmanager
def _decrypted(key: Path, *, ask_password: AskPassword | None) -> Iterator[Path]:
    """Yields a path at which a private key can be read once, without its password, and which is on no disk.

    model-signing takes a key by its path only, and a certificate's key only without a password.
    """
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    pem = read_private_key(key, ask_password=ask_password).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    reader, writer = os.pipe()  # holds far more than a key before a reader must come
    try:
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(pem)
        yield Path(f"/dev/fd/{reader}")
    finally:
        os.close(reader)
