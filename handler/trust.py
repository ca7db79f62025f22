"""Whom a server trusts, and the check of an unpacked archive, or of one file and its signature, against that.

The trust file lies outside the archive; `$IMGCLS_TRUST` names it to the workers. What it says, and what a check inside
the archive cannot promise: docs/trust.md. Paths in it are meant from its own folder.

    policy: signed           # off | hash | signed; without a trust file: hash
    keys: [release.pub]      # public keys of `imgcls keys create`
    certificates: [ca.pem]   # every signing certificate under these is trusted
    identities:              # Sigstore; asks the network for Sigstore's roots, unless trust_config holds them
      - {identity: releases@example.org, issuer: https://accounts.example.org}

`imgcls` uses this module from outside too. `model_signing` and its 25 MB are imported only for the policy `signed`.
"""

import base64
import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from handler.integrity import INTEGRITY_FILE, SIGNATURE_FILE, IntegrityError, check_tree, hash_file

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.x509 import Certificate
    from model_signing.verifying import Config

TRUST_VARIABLE = "IMGCLS_TRUST"
CURVES = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}  # all that model-signing takes
PREDICATE = "https://model_signing/signature/v1.0"


class TrustError(IntegrityError):
    """The trust file, or a key that it names, cannot be used; then nothing is trusted."""


class Identity(BaseModel):
    """A Sigstore signer: who, and who vouches for that."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: str
    issuer: str
    trust_config: Path | None = None  # Sigstore's roots in a file; None: fetched over the network


class Trust(BaseModel):
    """What a server accepts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    policy: Literal["off", "hash", "signed"]
    keys: tuple[Path, ...] = ()
    certificates: tuple[Path, ...] = ()
    identities: tuple[Identity, ...] = ()

    def describe_signers(self) -> str:
        """Names whom it trusts."""
        signers = [f"key {key.stem} ({fingerprint(read_public_key(key))[:16]}…)" for key in self.keys]
        signers += [f"certificates under {file.name}" for file in self.certificates]
        signers += [f"{entry.identity} of {entry.issuer}" for entry in self.identities]
        return ", ".join(signers)


DEFAULT_TRUST = Trust(policy="hash")


def read_trust(path: Path | None) -> Trust:
    """Reads a trust file; without one the policy is `hash`.

    Returns:
        What it says, its paths resolved.

    Raises:
        TrustError: it cannot be read, holds an unknown key, one twice or a wrong value, or names a file that is not
            there; or the policy is `signed` and nobody is trusted.
    """
    if path is None:
        return DEFAULT_TRUST
    try:
        data = path.read_bytes()
        fields, written = yaml.safe_load(data), _list_keys(data)
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as err:  # ValueError: no UTF-8, or a date that is none
        raise TrustError(f"{path}: the trust file cannot be read: {' '.join(str(err).split())}") from err
    names = [key for key, _ in written]
    if repeated := [key for key in names if names.count(key) > 1]:  # a line below must not undo a stricter one above
        raise TrustError(f"{path}: {repeated[0]} stands in it more than once, of which YAML heeds the last; remove one")
    if not isinstance(fields, dict):
        raise TrustError(f"{path}: is no trust file; expected at least policy: off, hash or signed")
    if fields.get("policy") is False:  # YAML takes a bare off for this, and no and false too, which are no policy
        fields["policy"] = dict(written).get("policy", "false").lower()
    try:
        trust = _resolve(Trust.model_validate(fields), folder=path.absolute().parent)
    except ValidationError as err:
        raise TrustError(f"{path}: {_describe(err)}") from err
    for file in (*trust.keys, *trust.certificates, *(entry.trust_config for entry in trust.identities)):
        if file is not None and not file.is_file():
            raise TrustError(f"{path}: names {file}, which is no file; paths are meant from the trust file's folder")
    if trust.policy == "signed" and not (trust.keys or trust.certificates or trust.identities):
        raise TrustError(f"{path}: policy is signed, and nobody is trusted; name keys, certificates or identities")
    return trust


def _list_keys(data: bytes) -> list[tuple[str, str]]:
    """Returns the keys of the file with their values as they are written, empty for one that is a list or a mapping."""
    root = yaml.compose(data, Loader=yaml.SafeLoader)
    pairs = root.value if isinstance(root, yaml.MappingNode) else ()
    return [(str(key.value), value.value if isinstance(value, yaml.ScalarNode) else "") for key, value in pairs]


def name_in_environment() -> str | None:
    """Returns what $IMGCLS_TRUST holds, None where it is not set.

    Raises:
        TrustError: it is set and empty, as `IMGCLS_TRUST=$TYPO` leaves it; that must not lower the policy.
    """
    named = os.environ.get(TRUST_VARIABLE)
    if named is not None and not named.strip():
        raise TrustError(f"{TRUST_VARIABLE} is {named!r}; expected the path of a trust file; name one, or unset it")
    return named


def read_trust_of_environment() -> Trust:
    """Reads the trust file that $IMGCLS_TRUST names, for a worker.

    Raises:
        TrustError: as `read_trust`; or the path is empty or not absolute. A worker stands in the folder of the unpacked
            archive, which must not bring the file by which it is judged.
    """
    named = name_in_environment()
    if named is not None and not Path(named).is_absolute():
        raise TrustError(
            f"{TRUST_VARIABLE} is {named!r}; expected an absolute path, as it is read in the archive's folder"
        )
    return read_trust(None if named is None else Path(named))


def check_trust(folder: Path, trust: Trust) -> str | None:
    """Checks the tree that TorchServe has unpacked.

    Returns:
        The signer under the policy `signed`: a key file's stem, a certificate's subject or a Sigstore identity; else
        None, because a signature that nobody was asked to trust proves nothing.

    Raises:
        IntegrityError: names the file and the reason.
    """
    if trust.policy == "off":
        return None
    signer = None
    if trust.policy == "signed":
        signer = verify_signature(folder / INTEGRITY_FILE, folder / SIGNATURE_FILE, trust, name=SIGNATURE_FILE)
    check_tree(folder)
    return signer


def verify_signature(content: Path, signature: Path, trust: Trust, *, name: str) -> str:
    """Checks a file's signature.

    Args:
        content: what was signed.
        signature: an OpenSSF model-signing bundle.
        trust: whose signatures count.
        name: what messages call the signature.

    Returns:
        The signer.

    Raises:
        IntegrityError: there is no signature, it is of other content, or by someone who is not trusted.
        TrustError: a trusted key or certificate cannot be used.
    """
    bundle = read_bundle(signature, name=name)
    reasons = []
    for signer, configure in _find_verifiers(bundle, trust):
        try:
            configure().verify(content, signature)
            return signer
        except Exception as err:  # ValueError, it says; but what four libraries below raise comes through: all mean no
            reasons.append(f"{signer}: {' '.join(str(err).split()) or type(err).__name__}")
    refuse_other_content(content, bundle, name=name)
    if reasons:
        problem = f"the signature by {bundle.signer} does not hold ({'; '.join(reasons)})"
    else:
        problem = f"signed by {bundle.signer}, which is not trusted"
    raise IntegrityError(f"{name}: {problem}; trusted are: {trust.describe_signers()}")


@dataclass(frozen=True)
class Bundle:
    """What a signature claims; nothing of it is proved by reading it."""

    kind: Literal["key", "certificate", "sigstore"]
    signer: str  # as it can be told from the bundle alone
    hint: str  # of a key: its fingerprint
    sha256: str  # of the one file that was signed


def read_bundle(signature: Path, *, name: str) -> Bundle:
    """Reads a model-signing bundle over one file, without judging it.

    Raises:
        IntegrityError: there is none, or it is not a bundle over the SHA-256 of one file.
    """
    try:
        fields = json.loads(signature.read_bytes())
        kind, signer, hint = _read_material(fields["verificationMaterial"])
        statement = json.loads(base64.b64decode(fields["dsseEnvelope"]["payload"], validate=True))
        [resource] = statement["predicate"]["resources"]
        # Exactly this form: a signature over a folder, or one that leaves paths out, says less than it is taken for.
        if statement["predicateType"] != PREDICATE or (resource["name"], resource["algorithm"]) != (".", "sha256"):
            raise ValueError("it is not over one file")
        return Bundle(kind, signer, hint, str(resource["digest"]))
    except FileNotFoundError as err:
        raise IntegrityError(f"{name}: the archive is not signed; sign it with imgcls archive sign") from err
    except OSError as err:
        raise IntegrityError(f"{name}: cannot be read: {err.strerror or err}") from err
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as err:
        raise IntegrityError(f"{name}: cannot be read as a model-signing bundle of one file: {err!r}") from err


def refuse_other_content(content: Path, bundle: Bundle, *, name: str) -> None:
    """Raises IntegrityError when a bundle does not even claim to be of this file."""
    if hash_file(content) != bundle.sha256:
        raise IntegrityError(f"{name}: is the signature of other content than {content.name}; one of them was replaced")


def _read_material(material: dict[str, Any]) -> tuple[Literal["key", "certificate", "sigstore"], str, str]:
    if "publicKey" in material:
        hint = str(material["publicKey"]["hint"])  # bundles before model-signing 1.0 have none, and are not read
        return "key", f"key {hint[:16]}…", hint
    if "x509CertificateChain" in material:
        return "certificate", _describe_certificate(material["x509CertificateChain"]["certificates"][0]), ""
    return "sigstore", _describe_certificate(material["certificate"]), ""


def _describe_certificate(fields: dict[str, str]) -> str:
    """Returns the subject of a signing certificate, or the identity where Sigstore made it."""
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(base64.b64decode(fields["rawBytes"], validate=True))
    if certificate.subject.rdns:
        return certificate.subject.rfc4514_string()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return ", ".join(str(name.value) for name in names)


def _find_verifiers(bundle: Bundle, trust: Trust) -> list[tuple[str, Callable[[], "Config"]]]:
    """Returns who of the trusted could have made a bundle, each with what checks that."""
    if bundle.kind == "key":
        keys = {fingerprint(read_public_key(file)): file for file in trust.keys}
        found = keys.get(bundle.hint)
        return [(found.stem, lambda: _new_config().use_elliptic_key_verifier(public_key=found))] if found else []
    if bundle.kind == "certificate":
        chain = [file for file in trust.certificates if read_certificates(file)]
        # Never with an empty chain: model-signing would trust every authority of the public web.
        check = [(bundle.signer, lambda: _new_config().use_certificate_verifier(certificate_chain=chain))]
        return check if chain else []
    return [(entry.identity, functools.partial(_use_sigstore, entry)) for entry in trust.identities]


def _use_sigstore(entry: Identity) -> "Config":
    return _new_config().use_sigstore_verifier(
        identity=entry.identity, oidc_issuer=entry.issuer, trust_config=entry.trust_config
    )


def _new_config() -> "Config":
    """Returns a verifier that hashes whole files with SHA-256, whatever a bundle asks for."""
    from model_signing import hashing, verifying

    return verifying.Config().set_hashing_config(hashing.Config())  # type: ignore[no-untyped-call]


def read_public_key(path: Path) -> "EllipticCurvePublicKey":
    """Reads a public key that model-signing can use.

    Raises:
        TrustError: it cannot be read, is no public key in PEM, or not on one of CURVES.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    data = _read_trusted(path)
    try:
        key = serialization.load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as err:
        raise TrustError(f"{path}: is no public key in PEM ({str(err).partition('.')[0]}); give the .pub file") from err
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise TrustError(f"{path}: is a key of the kind {describe_key(key)}; expected EC {', '.join(CURVES.values())}")
    return key


def describe_key(key: Any) -> str:
    """Returns the kind of a key: `EC P-256`, `RSA`."""
    curve = getattr(key, "curve", None)
    return f"EC {CURVES.get(curve.name, curve.name)}" if curve else type(key).__name__.removesuffix("PublicKey")


def fingerprint(key: "EllipticCurvePublicKey") -> str:
    """Returns what a bundle names the key by: the SHA-256 of its PEM, which `sha256sum NAME.pub` prints too."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def read_certificates(path: Path) -> list["Certificate"]:
    """Reads the certificates of a PEM file.

    Raises:
        TrustError: it cannot be read, or holds none.
    """
    from cryptography import x509

    data = _read_trusted(path)
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as err:
        raise TrustError(f"{path}: holds no certificate in PEM ({str(err).partition('.')[0]})") from err


def _read_trusted(path: Path) -> bytes:
    """Reads a file that a trust file names; a server often runs as another user than whoever put it there."""
    try:
        return path.read_bytes()
    except OSError as err:
        raise TrustError(f"{path}: cannot be read by this user: {err.strerror or err}") from err


def _resolve(trust: Trust, *, folder: Path) -> Trust:
    def resolve(path: Path) -> Path:
        return folder / path

    entries = (
        entry.model_copy(update={"trust_config": entry.trust_config and resolve(entry.trust_config)})
        for entry in trust.identities
    )
    return trust.model_copy(
        update={
            "keys": tuple(map(resolve, trust.keys)),
            "certificates": tuple(map(resolve, trust.certificates)),
            "identities": tuple(entries),
        }
    )


def _describe(error: ValidationError) -> str:
    problems = []
    for item in error.errors(include_url=False):
        field = ".".join(map(str, item["loc"])) or "the file"
        text = (
            "is not a key that is known here"
            if item["type"] == "extra_forbidden"
            else item["msg"].replace("tuple", "list")
        )
        got = "" if item["type"] in ("missing", "extra_forbidden") else f" (got {item['input']!r})"
        problems.append(f"{field}: {text}{got}")
    return "; ".join(problems)
