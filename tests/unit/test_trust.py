"""The trust policy, as a worker applies it to the tree that TorchServe has unpacked."""

import base64
import datetime
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from handler.integrity import (
    INTEGRITY_FILE,
    SIGNATURE_FILE,
    FileRecord,
    IntegrityError,
    dump_integrity,
    hash_file,
    make_integrity,
)
from handler.trust import (
    DEFAULT_TRUST,
    Trust,
    TrustError,
    check_trust,
    read_trust,
    read_trust_of_environment,
    verify_signature,
)
from imgcls.archive.keys import create_keys
from imgcls.archive.signing import Signer, signer_with_certificate, signer_with_key

Certificate = tuple[x509.Name, ec.EllipticCurvePrivateKey]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """release and other: key pairs. leaf.pem, under middle.pem, under root.pem; stranger.pem under itself."""
    folder = tmp_path_factory.mktemp("keys")
    create_keys("release", folder)
    create_keys("other", folder)
    root = write_certificate(folder, "root", is_authority=True)
    middle = write_certificate(folder, "middle", issuer=root, is_authority=True)
    write_certificate(folder, "leaf", issuer=middle)
    write_certificate(folder, "stranger", is_authority=True)
    return folder


def write_certificate(
    folder: Path, name: str, *, issuer: Certificate | None = None, is_authority: bool = False
) -> Certificate:
    """Valid for a day long ago: a signature outlives the certificate that made it."""
    key, subject = ec.generate_private_key(ec.SECP384R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    began = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    issuer_name, issuer_key = issuer or (subject, key)
    builder = x509.CertificateBuilder(issuer_name, subject, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(began).not_valid_after(began + datetime.timedelta(days=1))
    builder = builder.add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
    usage = dict.fromkeys(("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False)
    usage |= {"encipher_only": False, "decipher_only": False, "digital_signature": not is_authority}
    usage |= {"key_cert_sign": is_authority, "crl_sign": is_authority}
    builder = builder.add_extension(x509.KeyUsage(**usage), critical=True)
    pem = builder.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    (folder / f"{name}.pem").write_bytes(pem)
    private = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / f"{name}-key.pem").write_bytes(key.private_bytes(*private))
    return subject, key


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An unpacked archive with its record, not signed."""
    tree = tmp_path / "tree"
    for path, data in {"weights.safetensors": b"weights", "model/network.py": b"x = 1\n"}.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(data)
    return record(tree)


def record(tree: Path) -> Path:
    paths = ("model/network.py", "weights.safetensors")
    files = [FileRecord(path, (tree / path).stat().st_size, hash_file(tree / path)) for path in paths]
    (tree / INTEGRITY_FILE).parent.mkdir(exist_ok=True)
    (tree / INTEGRITY_FILE).write_bytes(dump_integrity(make_integrity(files)))
    return tree


def sign(tree: Path, signer: Signer) -> Path:
    signer.sign(tree / INTEGRITY_FILE, tree / SIGNATURE_FILE)
    return tree


def sign_with_key(tree: Path, keys: Path, name: str = "release") -> Path:
    return sign(tree, signer_with_key(keys / f"{name}.key"))


def sign_with_leaf(tree: Path, keys: Path) -> Path:
    return sign(tree, signer_with_certificate(keys / "leaf-key.pem", keys / "leaf.pem", [keys / "middle.pem"]))


def trusting(folder: Path, *names: str) -> Trust:
    trusted = {"keys": [name for name in names if name.endswith(".pub")]}
    trusted["certificates"] = [name for name in names if name.endswith(".pem")]
    (folder / "trust.yaml").write_text(json.dumps({"policy": "signed", **trusted}))  # JSON is YAML
    return read_trust(folder / "trust.yaml")


def test_without_a_trust_file_hashes_are_checked(tree: Path) -> None:
    assert read_trust(None) == DEFAULT_TRUST == Trust(policy="hash")
    assert check_trust(tree, DEFAULT_TRUST) is None
    (tree / "weights.safetensors").write_bytes(b"Weights")
    with pytest.raises(IntegrityError, match=r"^weights\.safetensors: is not the file that was recorded"):
        check_trust(tree, DEFAULT_TRUST)


def test_policy_off_checks_nothing(tree: Path, tmp_path: Path) -> None:
    (tree / INTEGRITY_FILE).unlink()
    (tmp_path / "trust.yaml").write_text("policy: off\n")  # for YAML the word is False
    assert check_trust(tree, read_trust(tmp_path / "trust.yaml")) is None


def test_signature_by_a_trusted_key_is_accepted_and_named(tree: Path, keys: Path) -> None:
    assert check_trust(sign_with_key(tree, keys), trusting(keys, "other.pub", "release.pub")) == "release"


def test_unsigned_archive_is_refused(tree: Path, keys: Path) -> None:
    with pytest.raises(IntegrityError, match=r"^MAR-INF/integrity\.json\.sig: the archive is not signed"):
        check_trust(tree, trusting(keys, "release.pub"))


def test_signature_by_another_key_is_refused_with_both_named(tree: Path, keys: Path) -> None:
    sign_with_key(tree, keys, "other")
    with pytest.raises(IntegrityError) as refused:
        check_trust(tree, trusting(keys, "release.pub"))
    other, release = (hash_file(keys / f"{name}.pub")[:16] for name in ("other", "release"))
    assert f"signed by key {other}…, which is not trusted; trusted are: key release ({release}…)" in str(refused.value)


def test_record_that_was_written_anew_after_the_signature_is_refused(tree: Path, keys: Path) -> None:
    """Whoever changes a file can change the record too, and then only the signature tells."""
    sign_with_key(tree, keys)
    (tree / "weights.safetensors").write_bytes(b"Weights")
    assert check_trust(record(tree), DEFAULT_TRUST) is None
    with pytest.raises(IntegrityError, match=r"is the signature of other content than integrity\.json"):
        check_trust(tree, trusting(keys, "release.pub"))


def test_changed_file_under_a_good_signature_is_refused(tree: Path, keys: Path) -> None:
    sign_with_key(tree, keys)
    (tree / "model" / "network.py").write_text("x = 2\n")
    with pytest.raises(IntegrityError, match=r"^model/network\.py: "):
        check_trust(tree, trusting(keys, "release.pub"))


def test_signature_that_claims_to_be_by_a_trusted_key_is_refused(tree: Path, keys: Path) -> None:
    """The name of the key stands in the bundle unsigned."""
    bundle = json.loads((sign_with_key(tree, keys, "other") / SIGNATURE_FILE).read_bytes())
    bundle["verificationMaterial"]["publicKey"]["hint"] = hash_file(keys / "release.pub")
    (tree / SIGNATURE_FILE).write_text(json.dumps(bundle))
    with pytest.raises(IntegrityError, match=r"does not hold \(release: InvalidSignature\)"):
        check_trust(tree, trusting(keys, "release.pub"))


def test_no_damaged_signature_raises_anything_else_or_brings_a_changed_record_through(tree: Path, keys: Path) -> None:
    signature, trust = sign_with_key(tree, keys) / SIGNATURE_FILE, trusting(keys, "release.pub")
    good, changed = signature.read_bytes(), tree.parent / "changed.json"
    changed.write_bytes((tree / INTEGRITY_FILE).read_bytes().replace(b"model", b"Model"))
    refused = 0
    for place in range(0, len(good), 5):
        signature.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        try:
            assert check_trust(tree, trust) == "release"  # a byte that says nothing, as in the name of a field
        except IntegrityError:
            refused += 1
        with pytest.raises(IntegrityError):
            verify_signature(changed, signature, trust, name="changed")
    assert refused > len(good) / 5 * 0.9


def test_signature_of_a_whole_folder_is_not_taken_for_one_of_the_record(tree: Path, keys: Path) -> None:
    """model-signing can leave paths out of a folder's signature, which then says less than it seems to."""
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=keys / "release.key")
    ignoring = hashing.Config().set_ignored_paths(paths=[Path("weights.safetensors")])
    config.set_hashing_config(ignoring).sign(tree, tree.parent / "folder.sig")
    (tree.parent / "folder.sig").rename(tree / SIGNATURE_FILE)
    with pytest.raises(IntegrityError, match="cannot be read as a model-signing bundle of one file"):
        check_trust(tree, trusting(keys, "release.pub"))


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"verificationMaterial": 1}', b"[" * 100_000])
def test_signature_that_is_no_bundle_is_refused(tree: Path, keys: Path, data: bytes) -> None:
    (tree / SIGNATURE_FILE).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"^MAR-INF/integrity\.json\.sig: cannot be read"):
        check_trust(tree, trusting(keys, "release.pub"))


def test_bundle_that_names_no_key_is_refused(tree: Path, keys: Path) -> None:
    """model-signing accepts such old bundles, with a warning on stdout, which a worker has for its protocol."""
    bundle = json.loads((sign_with_key(tree, keys) / SIGNATURE_FILE).read_bytes())
    del bundle["verificationMaterial"]["publicKey"]["hint"]
    (tree / SIGNATURE_FILE).write_text(json.dumps(bundle))
    with pytest.raises(IntegrityError, match="cannot be read"):
        check_trust(tree, trusting(keys, "release.pub"))


def test_certificate_under_a_trusted_authority_is_accepted_and_named(tree: Path, keys: Path) -> None:
    assert check_trust(sign_with_leaf(tree, keys), trusting(keys, "release.pub", "root.pem")) == "CN=leaf"


def test_certificate_under_another_authority_is_refused(tree: Path, keys: Path) -> None:
    with pytest.raises(IntegrityError, match=r"CN=leaf: unable to get local issuer certificate.*under stranger\.pem"):
        check_trust(sign_with_leaf(tree, keys), trusting(keys, "stranger.pem"))


def test_certificates_are_not_trusted_where_only_keys_are(tree: Path, keys: Path, monkeypatch: Any) -> None:
    """Without any of ours, model-signing would take the authorities of the public web."""
    monkeypatch.setattr("certifi.where", lambda: str(keys / "root.pem"))
    with pytest.raises(IntegrityError, match="signed by CN=leaf, which is not trusted"):
        check_trust(sign_with_leaf(tree, keys), trusting(keys, "release.pub"))


def sigstore_bundle(content: Path) -> dict[str, Any]:
    """What Sigstore's bundles look like from outside; nothing of it would hold."""
    key = ec.generate_private_key(ec.SECP256R1())
    began = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(x509.Name([]), x509.Name([]), key.public_key(), 1)
    builder = builder.not_valid_before(began).not_valid_after(began + datetime.timedelta(minutes=10))
    names = x509.SubjectAlternativeName([x509.RFC822Name("releases@example.org")])
    certificate = builder.add_extension(names, critical=True).sign(key, hashes.SHA256())
    resource = {"name": ".", "algorithm": "sha256", "digest": hash_file(content)}
    statement = {"predicateType": "https://model_signing/signature/v1.0", "predicate": {"resources": [resource]}}
    raw = base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()
    payload = base64.b64encode(json.dumps(statement).encode()).decode()
    return {"verificationMaterial": {"certificate": {"rawBytes": raw}}, "dsseEnvelope": {"payload": payload}}


def test_sigstore_signature_is_asked_for_each_trusted_identity(tree: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """Sigstore itself needs a network: in its place stands what accepts one identity."""
    from model_signing import verifying

    asked = []

    def use_sigstore_verifier(self: Any, *, identity: str, oidc_issuer: str, trust_config: Path | None) -> Any:
        asked.append((identity, oidc_issuer, trust_config))
        if identity != "releases@example.org":
            raise ValueError("not them")
        self.verify = lambda content, signature: None
        return self

    monkeypatch.setattr(verifying.Config, "use_sigstore_verifier", use_sigstore_verifier)
    (tree / SIGNATURE_FILE).write_text(json.dumps(sigstore_bundle(tree / INTEGRITY_FILE)))
    (tmp_path / "roots.json").write_text("{}")
    nobody = {"identity": "nobody@example.org", "issuer": "https://accounts.example.org"}
    releases = {"identity": "releases@example.org", "issuer": "https://example.org", "trust_config": "roots.json"}
    trust = tmp_path / "trust.yaml"
    trust.write_text(json.dumps({"policy": "signed", "identities": [nobody, releases]}))
    assert check_trust(tree, read_trust(trust)) == "releases@example.org"
    assert asked == [
        ("nobody@example.org", "https://accounts.example.org", None),
        ("releases@example.org", "https://example.org", tmp_path / "roots.json"),
    ]
    trust.write_text(json.dumps({"policy": "signed", "identities": [nobody]}))
    with pytest.raises(IntegrityError, match=r"by releases@example\.org does not hold \(nobody@example\.org: not them"):
        check_trust(tree, read_trust(trust))


BAD_FILES = {
    "": "is no trust file",
    "- policy": "is no trust file",
    "policy: [": "cannot be read",
    "policy: 2020-99-99": "cannot be read",
    f"policy: {'[' * 9000}": "cannot be read",
    "keys: [release.pub]": "policy: Field required",
    "policy: on": "policy: .*(got True)",
    "policy: no": "policy: Input should be 'off', 'hash' or 'signed' (got 'no')",
    '{"policy": false}': "policy: Input should be 'off', 'hash' or 'signed' (got 'false')",
    "<<: {policy: off}": "policy: Input should be 'off', 'hash' or 'signed' (got 'false')",
    "policy: sign": "policy: Input should be 'off', 'hash' or 'signed' (got 'sign')",
    "policy: hash\nkey: [release.pub]": "key: is not a key that is known here",
    "policy: signed\nkeys: [release.pub]\npolicy: hash": "policy stands in it more than once",
    'policy: signed\nkeys: [release.pub]\n"keys": [other.pub]': "keys stands in it more than once",
    "policy: signed": "nobody is trusted",
    "policy: signed\nkeys: []": "nobody is trusted",
    "policy: hash\nkeys: release.pub": "keys: Input should be a valid list",
    "policy: hash\nkeys: [gone.pub]": "gone.pub, which is no file",
    "policy: signed\nidentities: [{identity: a@example.org}]": "identities.0.issuer: Field required",
}


@pytest.mark.parametrize("text", BAD_FILES)
def test_bad_trust_file_is_refused_and_nothing_is_trusted(text: str, keys: Path) -> None:
    (keys / "bad.yaml").write_text(text)
    with pytest.raises(TrustError) as refused:
        read_trust(keys / "bad.yaml")
    said = str(refused.value)
    assert said.startswith(f"{keys / 'bad.yaml'}: ") and "\n" not in said
    for part in BAD_FILES[text].split(".*"):
        assert part in said


def test_trust_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="cannot be read"):
        read_trust(tmp_path / "trust.yaml")


def test_worker_refuses_a_relative_trust_file(tree: Path, keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker stands in the folder of the unpacked archive, which could bring a trust file of its own."""
    (tree / "trust.yaml").write_text("policy: off\n")
    monkeypatch.chdir(tree)
    monkeypatch.setenv("IMGCLS_TRUST", "trust.yaml")
    with pytest.raises(TrustError, match=r"IMGCLS_TRUST is 'trust\.yaml'; expected an absolute path"):
        read_trust_of_environment()
    monkeypatch.setenv("IMGCLS_TRUST", str(tree / "trust.yaml"))
    assert read_trust_of_environment().policy == "off"
    monkeypatch.delenv("IMGCLS_TRUST")
    assert read_trust_of_environment() == DEFAULT_TRUST


@pytest.mark.parametrize("value", ["", " "])
def test_empty_variable_does_not_lower_a_workers_policy(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMGCLS_TRUST", value)
    expected = f"IMGCLS_TRUST is {value!r}; expected the path of a trust file; name one, or unset it"
    with pytest.raises(TrustError, match=expected):
        read_trust_of_environment()


def test_paths_are_meant_from_the_trust_files_folder(keys: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (keys / "trust.yaml").write_text("policy: signed\nkeys: [release.pub]\n")
    monkeypatch.chdir(keys.parent)
    trust = read_trust(Path(keys.name) / "trust.yaml")
    monkeypatch.chdir(tmp_path)
    assert trust.keys == (keys / "release.pub",)


@pytest.mark.parametrize("kind", ["rsa", "private", "text"])
def test_trusted_file_that_is_no_usable_key_is_named(tree: Path, keys: Path, kind: str) -> None:
    file = keys / f"{kind}.pub"
    if kind == "rsa":
        public = rsa.generate_private_key(public_exponent=65537, key_size=2048).public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        file.write_bytes(public.public_bytes(serialization.Encoding.PEM, form))
    else:
        file.write_bytes((keys / "release.key").read_bytes() if kind == "private" else b"hello")
    with pytest.raises(
        TrustError, match=f"{kind}.pub: " + ("is a key of the kind RSA" if kind == "rsa" else "is no pub")
    ):
        check_trust(sign_with_key(tree, keys), trusting(keys, file.name))


def test_what_cannot_be_read_is_not_called_something_else(tree: Path, keys: Path) -> None:
    """A folder stands for a file that another user may not read: root may."""
    (keys / "closed").mkdir()
    signed = sign_with_key(tree, keys)
    with pytest.raises(TrustError, match="closed: cannot be read by this user: Is a directory"):
        check_trust(signed, Trust(policy="signed", keys=(keys / "closed",)))
    sign_with_leaf(tree, keys)
    with pytest.raises(TrustError, match="closed: cannot be read by this user: Is a directory"):
        check_trust(signed, Trust(policy="signed", certificates=(keys / "closed",)))
    (tree / SIGNATURE_FILE).unlink()
    (tree / SIGNATURE_FILE).mkdir()
    with pytest.raises(IntegrityError, match=r"integrity\.json\.sig: cannot be read: Is a directory"):
        check_trust(signed, trusting(keys, "release.pub"))


def test_model_signing_is_loaded_only_where_signatures_are_asked_for(tree: Path) -> None:
    script = """
import sys
from pathlib import Path
from handler.trust import check_trust, read_trust
check_trust(Path(sys.argv[1]), read_trust(None))
print([name for name in sys.modules if name.split(".")[0] in ("model_signing", "cryptography", "torch", "model")])
"""
    shown = subprocess.run([sys.executable, "-c", script, tree], capture_output=True, text=True, check=True)
    assert shown.stdout == "[]\n"


def test_no_network_is_touched_by_keys_and_certificates(
    tree: Path, keys: Path, no_network: Callable[..., None]
) -> None:
    sign_with_key(tree, keys)
    assert check_trust(tree, trusting(keys, "release.pub")) == "release"
    sign_with_leaf(tree, keys)
    assert verify_signature(tree / INTEGRITY_FILE, tree / SIGNATURE_FILE, trusting(keys, "root.pem"), name="x")


@pytest.fixture
def no_network(monkeypatch: Any) -> None:
    """Fails whatever asks a socket or a name server."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError(f"the network was asked: {arguments} {options}")

    for name in ("socket.socket.connect", "socket.socket.connect_ex", "socket.getaddrinfo", "socket.create_connection"):
        monkeypatch.setattr(name, refuse)
