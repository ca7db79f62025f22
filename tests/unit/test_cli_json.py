"""With --json a command prints one JSON document on stdout, also where it fails."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from handler.layout import EARLIEST
from imgcls.archive.keys import create_keys
from imgcls.archive.pack import pack_tree, write_manifest

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def in_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def mar(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.txt").write_text("as packed")
    write_manifest(tree, name="pets", version="1.0", created=EARLIEST)
    pack_tree(tree, tmp_path / "pets.mar", created=EARLIEST)
    return tmp_path / "pets.mar"


def tamper(mar: Path) -> None:
    mar.write_bytes(mar.read_bytes().replace(b"as packed", b"AS PACKED"))


def test_verify_tells_changed_and_untrusted_archives_from_such_as_cannot_be_read(command: Command, mar: Path):
    create_keys("release", mar.parent / "keys")
    (mar.parent / "signed.yaml").write_text("policy: signed\nkeys: [keys/release.pub]\n")
    code, out, err = command("archive", "verify", mar, "--json")
    assert (code, err) == (0, "") and json.loads(out)["verified"] is True

    def fail(*arguments: object) -> tuple[int, str]:
        code, out, err = command("archive", "verify", *arguments, "--json")
        answer = json.loads(out)
        assert answer["verified"] is False
        assert err == f"error: {answer['problem']}\n" and answer["error"] == answer["problem"]
        return code, answer["kind"]

    assert fail(mar, "--trust", "signed.yaml") == (1, "NotVerifiedError")
    assert fail(mar, "--trust", "none.yaml") == (2, "UsageError")
    assert fail("none.mar") == (1, "ArchiveError")
    tamper(mar)
    assert fail(mar) == (1, "NotVerifiedError")


@pytest.mark.parametrize(
    ("arguments", "code", "kind"),
    [
        (["archive", "inspect", "none.mar"], 1, "ArchiveError"),
        (["archive", "scan", "none.mar"], 1, "ArchiveError"),
        (["archive", "diff", "none.mar", "none.mar"], 1, "ArchiveError"),
        (["archive", "extract", "none.mar", "out"], 1, "ArchiveError"),
        (["archive", "extract", "pets.mar", "out"], 1, "NotVerifiedError"),
        (["archive", "sign", "pets.mar"], 2, "UsageError"),
        (["archive", "build", "runs/none", "--gate-against", "x"], 2, "UsageError"),
        (["keys", "show", "none.pub"], None, None),
        (["rollout", "history", "--state", "none"], None, None),
    ],
)
def test_every_command_that_fails_says_why_in_json(
    command: Command, mar: Path, arguments: list[str], code: int | None, kind: str | None
):
    tamper(mar)
    status, out, err = command(*arguments, "--json")
    answer = json.loads(out)
    assert set(answer) == {"error", "kind"}
    assert status in ({code} if code else {1, 2}) and answer["kind"] in ({kind} if kind else {answer["kind"]})
    assert err == f"error: {answer['error']}\n"


def test_without_json_stdout_stays_empty(command: Command):
    assert command("archive", "inspect", "none.mar")[:2] == (1, "")
    assert command("predict", "--url", "http://127.0.0.1:1", "--", "--json")[1] == ""  # a file of that name


def test_the_error_in_json_is_exact_and_that_on_the_screen_is_printable(command: Command):
    code, out, err = command("archive", "inspect", "a\x1b[8m\n.mar", "--json")
    assert json.loads(out)["error"].startswith("a\x1b[8m\n.mar: there is no such archive")
    assert err.startswith(r"error: a\x1b[8m\n.mar: there is no such archive") and code == 1


def test_a_verdict_is_not_followed_by_a_second_document(command: Command, mar: Path, tmp_path: Path):
    tamper(mar)
    code, out, err = command("archive", "inspect", mar, "--json")
    assert (code, err) == (1, "") and json.loads(out)["proof"]["verified"] is False
    with zipfile.ZipFile(tmp_path / "evil.mar", "w") as archive:
        archive.writestr("../evil.py", "x = 1\n")
    code, out, _ = command("archive", "scan", "evil.mar", "--json")
    assert code == 1 and json.loads(out)["passes"] is False


def test_answers_before_a_failure_are_the_only_document(command: Command, tmp_path: Path):
    (tmp_path / "a.png").touch()
    code, out, err = command("predict", "a.png", "--url", "http://127.0.0.1:1", "--json")
    assert (code, json.loads(out)) == (1, []) and err.startswith("error: ")
    code, out, _ = command("archive", "inspect", "none.mar", "--json")  # the next command begins anew
    assert json.loads(out)["kind"] == "ArchiveError"
