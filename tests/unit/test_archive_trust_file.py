"""Which trust file `archive verify` and `archive inspect` go by, and what they say of it."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from handler.layout import EARLIEST
from handler.trust import read_trust
from imgcls.archive.keys import create_keys
from imgcls.archive.pack import pack_tree, write_manifest
from imgcls.archive.signing import sign_archive, signer_with_key

Command = Callable[..., tuple[int, str, str]]
ROOT = Path(__file__).parents[2]
POLICIES = {"signed": "policy: signed\nkeys: [keys/release.pub]\n", "hash": "policy: hash\n", "off": "policy: off\n"}
LIGHT = """
import sys

class Blocker:
    blocked = {"torch", "numpy", "PIL", "safetensors", "psutil", "model_archiver", "modelaudit"}

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in self.blocked:
            raise ModuleNotFoundError(f"{name} is not in the light install", name=name)

sys.meta_path.insert(0, Blocker())
from imgcls.cli.main import main
main()
"""


@pytest.fixture(autouse=True)
def in_folder(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.chdir(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An empty folder beside unsigned.mar, signed.mar, and trust/ with a trust file for each policy."""
    create_keys("release", tmp_path / "trust/keys")
    for name in ("unsigned", "signed"):
        tree = tmp_path / name
        tree.mkdir()
        (tree / "a.txt").write_text("a")
        write_manifest(tree, name="pets", version="1.0", created=EARLIEST)
        pack_tree(tree, tmp_path / f"{name}.mar", created=EARLIEST)
    sign_archive(tmp_path / "signed.mar", signer_with_key(tmp_path / "trust/keys/release.key"))
    for policy, text in POLICIES.items():
        (tmp_path / f"trust/{policy}.yaml").write_text(text)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


@pytest.mark.parametrize("verb", ["verify", "inspect"])
def test_the_variable_s_trust_file_holds_as_for_serve(command: Command, monkeypatch: pytest.MonkeyPatch, verb: str):
    assert command("archive", verb, "../unsigned.mar")[0] == 0
    file = Path("../trust/signed.yaml").absolute()
    monkeypatch.setenv("IMGCLS_TRUST", str(file))
    code, out, err = command("archive", verb, "../unsigned.mar")
    said = "".join((out + err).split())  # a screen wraps long paths
    assert code == 1 and "thearchiveisnotsigned" in said and "signed.yaml" in said
    code, out, _ = command("archive", verb, "../signed.mar")
    assert code == 0 and f"trust{file},policysigned" in "".join(out.split())
    code, out, _ = command("archive", verb, "../signed.mar", "--json")
    answer = json.loads(out)
    told = answer if verb == "verify" else answer["proof"]
    assert (told["verified"], told["trust_file"], told["policy"]) == (True, str(file), "signed")
    assert told["trusted_signer"] == "release"


@pytest.mark.parametrize("verb", ["verify", "inspect"])
def test_the_flag_wins_over_the_variable(command: Command, monkeypatch: pytest.MonkeyPatch, verb: str):
    monkeypatch.setenv("IMGCLS_TRUST", str(Path("../trust/signed.yaml").absolute()))
    code, out, _ = command("archive", verb, "../unsigned.mar", "--trust", "../trust/hash.yaml")
    assert code == 0 and re.search(r"^trust +\.\./trust/hash\.yaml, policy hash$", out, re.M)


@pytest.mark.parametrize("verb", ["verify", "inspect"])
def test_trust_yaml_of_the_folder_holds(command: Command, folder: Path, verb: str):
    (folder / "trust.yaml").write_text("policy: signed\nkeys: [../trust/keys/release.pub]\n")
    assert command("archive", verb, "../unsigned.mar")[0] == 1
    assert command("archive", verb, "../signed.mar")[0] == 0


@pytest.mark.parametrize("verb", ["verify", "inspect"])
@pytest.mark.parametrize(("named", "message"), [("/nowhere/trust.yaml", "cannot be read"), ("", "IMGCLS_TRUST is ''")])
def test_a_variable_that_names_no_file_is_an_error(
    command: Command, monkeypatch: pytest.MonkeyPatch, verb: str, named: str, message: str
):
    monkeypatch.setenv("IMGCLS_TRUST", named)
    code, out, err = command("archive", verb, "../signed.mar")
    assert (code, out) == (2, "") and message in err


def test_a_foreign_archive_fails_where_something_is_demanded_of_it(command: Command, folder: Path):
    import zipfile

    with zipfile.ZipFile(folder / "foreign.mar", "w") as archive:
        archive.writestr("MAR-INF/MANIFEST.json", '{"model": {"modelName": "x", "modelVersion": "1"}}')
    codes = {
        policy: command("archive", "inspect", "foreign.mar", "--trust", f"../trust/{policy}.yaml")[0]
        for policy in POLICIES
    }
    assert codes == {"signed": 1, "hash": 1, "off": 0}


@pytest.mark.parametrize("policy", ["hash", "off"])
def test_a_signature_that_a_policy_does_not_ask_for_is_called_so(command: Command, policy: str):
    file = f"../trust/{policy}.yaml"
    _, out, err = command("archive", "verify", "../signed.mar", "--trust", file)
    assert f"signed    yes, but not checked: {file}'s policy is {policy}\n" in out and err == ""
    assert "signed    yes, but not checked: give --trust FILE\n" in command("archive", "verify", "../signed.mar")[1]
    _, out, _ = command("archive", "inspect", "../signed.mar", "--trust", file)
    assert f"not checked against trusted keys: {file}'s policy is {policy}" in " ".join(out.split())


@pytest.mark.parametrize("policy", ["hash", "off"])
def test_signers_whom_a_policy_does_not_ask_for_are_warned_of(folder: Path, policy: str):
    file = folder.parent / "trust/unused.yaml"
    file.write_text(f"policy: {policy}\nkeys: [keys/release.pub]\n")
    command = [
        sys.executable,
        "-m",
        "imgcls.cli.main",
        "archive",
        "verify",
        "../unsigned.mar",
        "--trust",
        file,
        "--json",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert (
        result.stderr.startswith(f"warning: {file}: its policy is {policy}, ") and "its keys go unused" in result.stderr
    )
    assert json.loads(result.stdout)["verified"]


def test_the_error_of_a_trust_file_that_is_not_there_tells_one_that_works(command: Command, folder: Path):
    code, _, err = command("archive", "verify", "../signed.mar", "--trust", "trust.yaml")
    assert code == 2
    written = err.strip().partition("; write one: ")[2]
    create_keys("release", folder / "keys")
    (folder / "trust.yaml").write_text(written)
    trust = read_trust(folder / "trust.yaml")
    assert (trust.policy, trust.keys) == ("signed", (folder / "keys/release.pub",))


@pytest.mark.parametrize("document", ["README.md", "docs/trust.md"])
def test_the_trust_file_of_the_documents_is_made_by_their_own_line(folder: Path, document: str):
    [line] = [line for line in (ROOT / document).read_text().splitlines() if line.startswith("    printf 'policy")]
    create_keys("release", folder / "keys")
    subprocess.run(["sh", "-c", line], check=True, cwd=folder)
    assert read_trust(folder / "trust.yaml").policy == "signed"


@pytest.mark.parametrize("arguments", [["verify"], ["inspect"], ["verify", "--json"], ["inspect", "--json"]])
def test_a_light_install_goes_by_the_trust_file_too(folder: Path, arguments: list[str]):
    (folder / "trust.yaml").write_text("policy: signed\nkeys: [../trust/keys/release.pub]\n")

    def run(mar: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", LIGHT, "archive", *arguments, mar]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)

    assert (result := run("../signed.mar")).returncode == 0, result.stderr
    assert (result := run("../unsigned.mar")).returncode == 1 and "is not signed" in result.stdout + result.stderr
    assert run("../none.mar").stderr.startswith("error: ../none.mar: there is no such archive")
