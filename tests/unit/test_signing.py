"""Keys, and signing and checking a packed archive, through the command line and OpenSSF's own tool."""

import errno
import json
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from handler.integrity import INTEGRITY_FILE, SIGNATURE_FILE
from handler.trust import Trust
from imgcls.archive.keys import create_keys, describe_file, read_private_key
from imgcls.archive.pack import pack_tree, write_manifest
from imgcls.archive.signing import sign_archive, signer_with_key
from imgcls.archive.trust import check_archive_trust, detached_signature
from imgcls.archive.verify import verify_archive
from imgcls.errors import ArchiveError, UsageError

UPSTREAM = Path(sys.executable).parent / "model_signing"
CREATED = datetime(1980, 1, 1, tzinfo=UTC)
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def without_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin.isatty", lambda: False, raising=False)


@pytest.fixture
def mar(tmp_path: Path) -> Path:
    """An archive without a model worth the name."""
    tree, store = tmp_path / "tree", tmp_path / "store"
    store.mkdir()
    (tree / "model").mkdir(parents=True)
    (tree / "model" / "network.py").write_text("x = 1\n")
    (tree / "weights.safetensors").write_bytes(b"weights" * 1000)
    write_manifest(tree, name="imgcls", version="1.0", created=CREATED)
    pack_tree(tree, store / "imgcls.mar", created=CREATED)
    return store / "imgcls.mar"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """release and other: key pairs."""
    for name in ("release", "other"):
        create_keys(name, tmp_path / "keys")
    return tmp_path / "keys"


def trusting(*keys: Path) -> Trust:
    return Trust(policy="signed", keys=keys)


def upstream(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([UPSTREAM, *map(str, arguments)], capture_output=True, text=True, check=False)


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_new_keys_are_for_their_owner_only_and_show_one_fingerprint(command: Command, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        status, said, _ = command("keys", "create", "release", "--folder", tmp_path / "keys", "--json")
    finally:
        os.umask(before)
    pair = json.loads(said)
    private, public = Path(pair["private"]), Path(pair["public"])
    assert status == 0 and not pair["has_password"]
    assert stat.S_IMODE(private.stat().st_mode) == 0o600 and stat.S_IMODE(public.stat().st_mode) == 0o644
    assert private.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----")  # PKCS8
    checked = subprocess.run(["sha256sum", public], capture_output=True, text=True, check=True).stdout
    assert checked.split()[0] == pair["fingerprint"]
    for file in (private, public):
        assert pair["fingerprint"] in command("keys", "show", file)[1]


def test_keys_are_never_overwritten(command: Command, keys: Path) -> None:
    before = {file: file.read_bytes() for file in keys.iterdir()}
    assert command("keys", "create", "release", "--folder", keys)[0] == 1
    (keys / "release.key").unlink()
    status, _, said = command("keys", "create", "release", "--folder", keys)
    assert status == 1 and "release.pub: is there already" in said and said.count("\n") == 1
    del before[keys / "release.key"]
    assert {file: file.read_bytes() for file in keys.iterdir()} == before


@pytest.mark.parametrize("folder", ["file", "file/below", "/proc/imgcls"])
def test_folder_that_cannot_hold_keys_is_refused_on_one_line(command: Command, tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").touch()
    status, _, said = command("keys", "create", "release", "--folder", tmp_path / folder)
    assert status == 1 and said.startswith(f"error: {tmp_path / folder}: keys cannot be written here (")
    assert said.endswith("); name another folder with --folder\n") and "Errno" not in said and said.count("\n") == 1


def test_half_a_pair_is_not_left_behind(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []

    def fill_disk(descriptor: int) -> None:
        written.append(descriptor)
        if len(written) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", fill_disk)
        status, _, said = command("keys", "create", "release", "--folder", tmp_path)
    assert status == 1 and "(No space left on device)" in said and len(written) == 2
    assert not list(tmp_path.iterdir())
    (tmp_path / "release.pub").symlink_to(tmp_path / "gone")
    assert command("keys", "create", "release", "--folder", tmp_path)[0] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["release.pub"]  # what was there stays
    (tmp_path / "release.pub").unlink()
    assert command("keys", "create", "release", "--folder", tmp_path)[0] == 0


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", ".hidden", "/tmp/x"])
def test_key_name_that_is_no_plain_file_name_is_refused(command: Command, tmp_path: Path, name: str) -> None:
    assert command("keys", "create", name, "--folder", tmp_path / "keys")[0] == 2
    assert not (tmp_path / "keys").exists()


def test_key_file_that_others_may_read_is_pointed_out(command: Command, keys: Path) -> None:
    (keys / "release.key").chmod(0o640)
    status, _, said = command("keys", "show", keys / "release.key")
    assert status == 0 and "warning: others may read" in said


@pytest.mark.parametrize("curve", ["P-256", "P-384", "P-521"])
def test_archive_signed_on_each_curve_is_accepted_by_upstreams_tool(
    command: Command, mar: Path, tmp_path: Path, curve: str
) -> None:
    command("keys", "create", "release", "--folder", tmp_path, "--curve", curve)
    status, said, _ = command("archive", "sign", mar, "--key", tmp_path / "release.key", "--json")
    signature = Path(json.loads(said)["signature"])
    assert status == 0 and signature == mar.with_name("imgcls.mar.sig")
    check = ("--signature", signature, "--public_key", tmp_path / "release.pub")
    assert upstream("verify", "key", mar, *check).returncode == 0
    flip(mar, len(mar.read_bytes()) // 2)
    assert upstream("verify", "key", mar, *check).returncode == 1


def test_inner_signature_is_accepted_by_upstreams_tool(mar: Path, keys: Path, tmp_path: Path) -> None:
    sign_archive(mar, signer_with_key(keys / "release.key"))
    with zipfile.ZipFile(mar) as archive:
        archive.extractall(tmp_path / "unzipped")
    record, signature = tmp_path / "unzipped" / INTEGRITY_FILE, tmp_path / "unzipped" / SIGNATURE_FILE
    check = ("--signature", signature, "--public_key", keys / "release.pub")
    assert upstream("verify", "key", record, *check).returncode == 0


def test_signature_by_upstreams_tool_is_accepted(mar: Path, keys: Path) -> None:
    sign_archive(mar, signer_with_key(keys / "release.key"))
    mar.with_name("imgcls.mar.sig").unlink()
    made = upstream("sign", "key", mar, "--signature", f"{mar}.sig", "--private_key", keys / "release.key")
    assert made.returncode == 0, made.stderr
    assert check_archive_trust(mar, trusting(keys / "release.pub")) == "release"


def test_signed_archive_is_still_verified_to_the_byte_and_keeps_its_hash(mar: Path, keys: Path) -> None:
    before = verify_archive(mar)
    signed = sign_archive(mar, signer_with_key(keys / "release.key"))
    after = verify_archive(mar)
    assert (before.is_signed, after.is_signed) == (False, True)
    assert before.integrity.tree_sha256 == after.integrity.tree_sha256 == signed.tree_sha256
    assert stat.S_IMODE(mar.stat().st_mode) == stat.S_IMODE(signed.signature.stat().st_mode) == 0o644
    assert sorted(file.name for file in mar.parent.iterdir()) == ["imgcls.mar", "imgcls.mar.sig"]


def test_signing_again_replaces_both_signatures(mar: Path, keys: Path) -> None:
    for name in ("release", "other"):
        sign_archive(mar, signer_with_key(keys / f"{name}.key"))
    assert check_archive_trust(mar, trusting(keys / "other.pub")) == "other"
    with pytest.raises(ArchiveError, match="which is not trusted; trusted are: key release"):
        check_archive_trust(mar, trusting(keys / "release.pub"))


def test_archive_behind_a_link_is_signed_where_it_lies(command: Command, mar: Path, keys: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.mar"
    link.symlink_to(mar)
    sign_archive(link, signer_with_key(keys / "release.key"))
    assert link.is_symlink() and detached_signature(mar).exists()
    assert json.loads(command("archive", "verify", link, "--json")[1])["detached_signature"]
    assert check_archive_trust(link, trusting(keys / "release.pub")) == "release"


def test_a_loop_of_links_is_no_archive_that_could_be_signed(command: Command, keys: Path, tmp_path: Path) -> None:
    (tmp_path / "loop.mar").symlink_to(tmp_path / "loop.mar")
    code, _, error = command("archive", "sign", tmp_path / "loop.mar", "--key", keys / "release.key")
    assert (code, error.count("\n")) == (1, 1)
    assert "loop.mar: there is no such archive" in error


def test_changed_archive_is_not_signed(command: Command, mar: Path, keys: Path) -> None:
    flip(mar, mar.read_bytes().index(b"weights" * 100))
    before = mar.read_bytes()
    status, _, said = command("archive", "sign", mar, "--key", keys / "release.key")
    assert status == 1 and "weights.safetensors: is not the file that was recorded" in said
    assert mar.read_bytes() == before and not detached_signature(mar).exists()


@pytest.mark.parametrize("after", [0, 1])
def test_crash_between_the_files_leaves_a_whole_archive_and_no_wrong_signature(
    mar: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Signed by release, then by other: the crash comes before or after the archive is in place."""
    from imgcls.archive import publish as publishing

    sign_archive(mar, signer_with_key(keys / "release.key"))
    publish, moved = publishing.publish, []

    def crash(archive: Path, target: Path) -> None:
        if len(moved) == after:
            raise KeyboardInterrupt
        moved.append(target)
        publish(archive, target)

    monkeypatch.setattr(publishing, "publish", crash)
    with pytest.raises(KeyboardInterrupt):
        sign_archive(mar, signer_with_key(keys / "other.key"))
    assert [file.name for file in mar.parent.iterdir()] == ["imgcls.mar"]
    signer = ("release", "other")[after]
    assert check_archive_trust(mar, trusting(keys / f"{signer}.pub")) == signer


def test_detached_signature_of_another_archive_is_refused_under_every_policy_but_off(mar: Path, keys: Path) -> None:
    """As it is when an archive is built anew and its old signature stays."""
    sign_archive(mar, signer_with_key(keys / "release.key"))
    signature = detached_signature(mar).read_bytes()
    sign_archive(mar, signer_with_key(keys / "release.key"))
    detached_signature(mar).write_bytes(signature)
    for trust in (Trust(policy="hash"), trusting(keys / "release.pub")):
        with pytest.raises(ArchiveError, match=r"imgcls\.mar\.sig: is the signature of other content than imgcls\.mar"):
            check_archive_trust(mar, trust)
    assert check_archive_trust(mar, Trust(policy="off")) is None


def test_detached_signature_by_another_key_is_refused(mar: Path, keys: Path) -> None:
    sign_archive(mar, signer_with_key(keys / "release.key"))
    upstream("sign", "key", mar, "--signature", f"{mar}.sig", "--private_key", keys / "other.key")
    with pytest.raises(ArchiveError, match=r"imgcls\.mar\.sig: signed by key .*, which is not trusted"):
        check_archive_trust(mar, trusting(keys / "release.pub"))


def test_unsigned_archive_passes_hash_and_is_refused_under_signed(mar: Path, keys: Path) -> None:
    assert check_archive_trust(mar, Trust(policy="hash")) is None
    with pytest.raises(ArchiveError, match="the archive is not signed; sign it with imgcls archive sign"):
        check_archive_trust(mar, trusting(keys / "release.pub"))


def test_trusted_key_that_cannot_be_used_is_a_matter_of_the_trust_file(mar: Path, keys: Path) -> None:
    sign_archive(mar, signer_with_key(keys / "release.key"))
    with pytest.raises(UsageError, match="is no public key in PEM"):
        check_archive_trust(mar, trusting(keys / "release.key"))


def test_password_comes_from_the_environment_or_a_terminal_and_never_from_a_flag(
    command: Command, mar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMGCLS_KEY_PASSWORD", "secret")
    command("keys", "create", "locked", "--folder", tmp_path)
    key = tmp_path / "locked.key"
    assert key.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----")
    assert command("archive", "sign", mar, "--key", key)[0] == 0
    monkeypatch.setenv("IMGCLS_KEY_PASSWORD", "wrong")
    assert "the password does not open this key" in command("archive", "sign", mar, "--key", key)[2]
    monkeypatch.delenv("IMGCLS_KEY_PASSWORD")
    status, _, said = command("archive", "sign", mar, "--key", key)
    assert status == 1 and "set it in IMGCLS_KEY_PASSWORD" in said
    assert describe_file(key, ask_password=lambda path: "secret").kind == "private key"


def test_key_under_a_password_reaches_model_signing_through_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes a path, and a certificate's key only without a password; no disk shall hold that."""
    from model_signing import signing as upstream_signing

    got: list[tuple[bool, bytes]] = []

    def take(self: Any, *, private_key: Path) -> None:
        got.append((stat.S_ISFIFO(private_key.stat().st_mode), private_key.read_bytes()))

    monkeypatch.setattr(upstream_signing.Config, "use_elliptic_key_signer", take)
    create_keys("locked", tmp_path, password="secret")
    signer_with_key(tmp_path / "locked.key", ask_password=lambda path: "secret")
    [(is_pipe, pem)] = got
    assert is_pipe and pem.startswith(b"-----BEGIN PRIVATE KEY-----")


def test_archive_signed_with_a_certificate_is_accepted_here_and_by_upstreams_tool(
    command: Command, mar: Path, keys: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_keys("team", tmp_path, password="secret")
    monkeypatch.setenv("IMGCLS_KEY_PASSWORD", "secret")
    certificate = write_certificate(tmp_path / "team.pem", read_private_key(tmp_path / "team.key"))
    flags = ["--key", tmp_path / "team.key", "--certificate", certificate]
    status, said, _ = command("archive", "sign", mar, *flags, "--json")
    assert status == 0 and json.loads(said)["signer"] == "CN=team"
    assert check_archive_trust(mar, Trust(policy="signed", certificates=(certificate,))) == "CN=team"
    check = ("--signature", f"{mar}.sig", "--certificate_chain", certificate)
    assert upstream("verify", "certificate", mar, *check).returncode == 0
    monkeypatch.delenv("IMGCLS_KEY_PASSWORD")
    status, _, said = command("archive", "sign", mar, "--key", keys / "release.key", "--certificate", certificate)
    assert status == 1 and "does not match the public key" in said
    status, _, said = command("archive", "sign", mar, *flags[:2], "--certificate", tmp_path / "gone.pem")
    assert status == 1 and "gone.pem: there is no such certificate" in said


def write_certificate(file: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    """A signing certificate that stands for itself."""
    name, began = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file.stem)]), datetime(2024, 1, 1, tzinfo=UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, began, began + timedelta(days=1))
    usage = x509.KeyUsage(True, *[False] * 8)  # digital_signature
    certificate = builder.add_extension(usage, critical=True).sign(key, hashes.SHA256())
    file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return file


@pytest.mark.parametrize("kind", ["rsa", "secp256k1", "public", "text", "gone"])
def test_key_that_cannot_sign_is_refused_on_one_line(command: Command, mar: Path, keys: Path, kind: str) -> None:
    file = keys / f"{kind}.key"
    private = {
        "rsa": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
        "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    }
    if kind in private:
        form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        file.write_bytes(private[kind]().private_bytes(*form))
    elif kind != "gone":
        file.write_bytes((keys / "release.pub").read_bytes() if kind == "public" else b"hello")
    status, _, said = command("archive", "sign", mar, "--key", file)
    expected = {
        "rsa": "is a key of the kind RSA; expected EC P-256",
        "secp256k1": "is a key of the kind EC secp256k1",
        "gone": "cannot be read",
    }
    assert status == 1 and expected.get(kind, "is no private key in PEM") in said and said.count("\n") == 1
    assert not detached_signature(mar).exists()


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--sigstore", "--key", "release.key"],
        ["--certificate", "c.pem"],
        ["--chain", "c.pem", "--key", "release.key"],
    ],
)
def test_signer_must_be_named_in_one_way(command: Command, mar: Path, flags: list[str]) -> None:
    status, _, said = command("archive", "sign", mar, *flags)
    assert status == 2 and said.startswith("error: name the signer: --key KEY, ")


def test_sigstore_without_a_network_says_so_and_changes_nothing(
    command: Command, mar: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_signing import signing as upstream_signing

    def fail(self: Any, **options: Any) -> None:
        assert options["use_ambient_credentials"] and options["identity_token"] == "token"
        raise RuntimeError("Failed to refresh TUF metadata")

    monkeypatch.setattr(upstream_signing.Config, "use_sigstore_signer", fail)
    monkeypatch.setenv("SIGSTORE_ID_TOKEN", "token")
    before = mar.read_bytes()
    status, _, said = command("archive", "sign", mar, "--sigstore")
    assert status == 1 and "Sigstore cannot be reached (Failed to refresh TUF metadata)" in said
    assert mar.read_bytes() == before


def test_signing_and_checking_with_a_key_ask_no_network(mar: Path, keys: Path) -> None:
    """In a process of its own, where imports too meet a socket that is blocked."""
    script = """
import socket, sys
def refuse(*arguments, **options):
    raise SystemExit(f"the network was asked: {arguments} {options}")
socket.socket.connect = socket.socket.connect_ex = socket.getaddrinfo = socket.create_connection = refuse
from pathlib import Path
from handler.trust import Trust
from imgcls.archive.signing import sign_archive, signer_with_key
from imgcls.archive.trust import check_archive_trust
mar, key, public = map(Path, sys.argv[1:])
sign_archive(mar, signer_with_key(key))
print(check_archive_trust(mar, Trust(policy="signed", keys=(public,))))
"""
    arguments = [mar, keys / "release.key", keys / "release.pub"]
    shown = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
    assert shown.stdout == "release\n", shown.stderr
