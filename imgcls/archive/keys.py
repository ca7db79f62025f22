"""Key pairs for signing archives: made once, the private half kept by whoever releases.

Private keys are PKCS8 in PEM, readable by their owner only, optionally under a password; public ones are PEM. Both are
what OpenSSL and OpenSSF model-signing read.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from handler.trust import CURVES, TrustError, describe_key, fingerprint, read_certificates, read_public_key
from imgcls.errors import ArchiveError, UsageError
from imgcls.files import sync

PASSWORD_VARIABLE = "IMGCLS_KEY_PASSWORD"
_CURVES = {curve.name: curve for curve in (ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1())}
Curve = Literal["P-256", "P-384", "P-521"]
AskPassword = Callable[[Path], str]


@dataclass(frozen=True)
class KeyPair:
    """A new key pair."""

    private: Path
    public: Path
    fingerprint: str


@dataclass(frozen=True)
class KeyDescription:
    """What a key or certificate file holds."""

    file: Path
    kind: Literal["private key", "public key", "certificate"]
    algorithm: str
    fingerprint: str  # of the public half
    subject: str = ""  # of a certificate
    is_open_to_others: bool = False  # a private key that more than its owner may read


def create_keys(name: str, folder: Path, *, password: str | None = None, curve: Curve = "P-256") -> KeyPair:
    """Makes `folder/NAME.key` and `folder/NAME.pub`; never overwrites a file.

    Raises:
        UsageError: the name is not a plain file name, or the password is empty.
        ArchiveError: one of the files is there already, or cannot be written; then neither is left behind.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise UsageError(f"the key's name is {name!r}; expected a plain file name such as release")
    if password == "":
        raise UsageError(f"the password is empty; give one, or none at all by leaving {PASSWORD_VARIABLE} unset")
    curve_name = next(key for key, label in CURVES.items() if label == curve)
    key = ec.generate_private_key(_CURVES[curve_name])
    protection = serialization.BestAvailableEncryption(password.encode()) if password else NoEncryption()
    pair = KeyPair(folder / f"{name}.key", folder / f"{name}.pub", fingerprint(key.public_key()))
    try:
        _write_pair(
            pair,
            private=key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection),
            public=key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        )
    except OSError as err:
        problem = f"keys cannot be written here ({err.strerror or err})"
        raise ArchiveError(f"{folder}: {problem}; name another folder with --folder") from err
    return pair


def read_private_key(path: Path, *, ask_password: AskPassword | None = None) -> ec.EllipticCurvePrivateKey:
    """Reads a private key that model-signing can use.

    Args:
        path: a PEM file.
        ask_password: asked for the password where the key has one and $IMGCLS_KEY_PASSWORD is not set.

    Raises:
        ArchiveError: the file is no such key, or the password is missing or wrong.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise ArchiveError(f"{path}: the private key cannot be read: {err.strerror}") from err
    key = _load(path, data, ask_password=ask_password)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        kind, expected = describe_key(key.public_key()), ", ".join(CURVES.values())
        raise ArchiveError(
            f"{path}: is a key of the kind {kind}; expected EC {expected}, as imgcls keys create makes it"
        )
    return key


def describe_file(path: Path, *, ask_password: AskPassword | None = None) -> KeyDescription:
    """Says what a PEM file holds.

    Raises:
        ArchiveError: it is neither a key nor a certificate that can be used to sign or verify.
    """
    try:
        text = path.read_bytes()
    except OSError as err:
        raise ArchiveError(f"{path}: cannot be read: {err.strerror}") from err
    try:
        if b"PRIVATE KEY" in text:
            key = read_private_key(path, ask_password=ask_password).public_key()
            is_open = bool(path.stat().st_mode & 0o077)
            return KeyDescription(path, "private key", describe_key(key), fingerprint(key), is_open_to_others=is_open)
        if b"BEGIN CERTIFICATE" in text:
            first, *_ = read_certificates(path)
            public: Any = first.public_key()
            subject = first.subject.rfc4514_string()
            return KeyDescription(path, "certificate", describe_key(public), fingerprint(public), subject)
        if b"PUBLIC KEY" not in text:
            raise ArchiveError(f"{path}: holds no key and no certificate in PEM")
        public_key = read_public_key(path)
        return KeyDescription(path, "public key", describe_key(public_key), fingerprint(public_key))
    except TrustError as err:
        raise ArchiveError(str(err)) from err


def _load(path: Path, data: bytes, *, ask_password: AskPassword | None) -> Any:
    try:
        return serialization.load_pem_private_key(data, None)
    except TypeError:  # it has a password
        password = _find_password(path, ask_password=ask_password)
    except (ValueError, UnsupportedAlgorithm) as err:
        raise ArchiveError(
            f"{path}: is no private key in PEM ({str(err).partition('.')[0]}); give the .key file"
        ) from err
    try:
        return serialization.load_pem_private_key(data, password.encode())
    except ValueError as err:
        raise ArchiveError(f"{path}: the password does not open this key") from err


def _find_password(path: Path, *, ask_password: AskPassword | None) -> str:
    """Never from the command line, which every user of the machine can read."""
    if password := os.environ.get(PASSWORD_VARIABLE):
        return password
    if ask_password is None:
        raise ArchiveError(f"{path}: has a password; set it in {PASSWORD_VARIABLE}, or sign in a terminal to be asked")
    return ask_password(path)


def _write_pair(pair: KeyPair, *, private: bytes, public: bytes) -> None:
    """Writes both files or neither: half a pair would make the next try refuse to overwrite it."""
    for file in (pair.private, pair.public):
        if file.exists():
            raise ArchiveError(f"{file}: is there already, and a key is never overwritten; choose another name")
    pair.private.parent.mkdir(parents=True, exist_ok=True)
    _write_new(pair.private, private, mode=0o600)
    try:
        _write_new(pair.public, public, mode=0o644)
    except OSError:
        pair.private.unlink()
        raise
    sync(pair.private.parent)


def _write_new(path: Path, data: bytes, *, mode: int) -> None:
    """Writes a file that must not be there yet; nobody else can read it at any moment."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(data)
            file.flush()
            os.fsync(descriptor)
    except OSError:  # a disk that is full
        path.unlink()
        raise
