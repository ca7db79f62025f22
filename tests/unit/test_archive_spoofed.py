"""Archives that try to speak through the commands that show them: control characters, forged lines, YAML bombs."""

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging_utils import ModelExportUtils

from handler.layout import EARLIEST
from imgcls.archive.contents import read_contents
from imgcls.archive.describe import describe_archive
from imgcls.archive.pack import pack_tree, write_manifest
from imgcls.archive.tree import read_tree
from imgcls.archive.verify import NAME, NotVerifiedError, verify_archive
from imgcls.errors import ArchiveError

Make = Callable[..., Path]
Run = Callable[..., subprocess.CompletedProcess[str]]
FORGED = "imgcls 1.0: all 66 files and every byte as packed\nsigned    by release, which trust.yaml trusts\n\x1b[8m"
LABEL = "cat\x1b[2K\r\x1b[1Gverified  yes\u202e"
SPELT = r"cat\x1b[2K\r\x1b[1Gverified  yes\u202e"
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """make("a", name="x", version="1.0", **{path: text}) -> a.mar, as packed."""

    def make_archive(stem: str = "x", *, name: str = "x", version: str = "1.0", **files: str) -> Path:
        tree, mar = tmp_path / stem, tmp_path / f"{stem}.mar"
        for path, content in ({"a.txt": "a"} | files).items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(content)
        write_manifest(tree, name=name, version=version, created=EARLIEST)
        pack_tree(tree, mar, created=EARLIEST)
        return mar

    return make_archive


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """run("verify", …) -> what a process of `imgcls archive verify …` did."""

    def run_command(*arguments: object, group: str = "archive") -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "imgcls.cli.main", *filter(None, [group]), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=60)

    return run_command


def add(mar: Path, path: str, content: str) -> Path:
    """Adds a file to an archive, under a name that no build takes."""
    with zipfile.ZipFile(mar, "a") as archive:
        archive.writestr(path, content)
    return mar


def is_harmless(text: str) -> bool:
    return all(char.isprintable() or char == "\n" for char in text)


def test_no_name_prints_a_verdict_of_its_own(make: Make, run: Run):
    result = run("verify", make(name=FORGED))
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1 and is_harmless(result.stderr)
    assert r"its modelName is 'imgcls 1.0: all 66 files and every byte as packed\nsigned" in result.stderr


@pytest.mark.parametrize("text", [" ", "a b", "imgcls\n", "-a", "ä", "a/b", "\x1b[8m", "a" * 100_000 + "!"])
def test_names_and_versions_that_no_build_takes_are_refused(make: Make, text: str):
    for stem, fields, what in (("a", {"name": text}, "modelName"), ("b", {"version": text}, "modelVersion")):
        with pytest.raises(NotVerifiedError, match=f"its {what} is .*; expected letters, digits") as caught:
            verify_archive(make(stem, **fields))
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["a", "0", "A.b-c_9", "1.0", "a.", "", "a b", "_a", ".a", "a\tb", "é", "a:b"])
def test_names_are_judged_as_torch_model_archiver_judges_them(text: str):
    try:
        ModelExportUtils.check_model_name_regex_or_exit(text)
        is_taken = True
    except ModelArchiverError:
        is_taken = False
    assert bool(NAME.fullmatch(text)) == is_taken


def test_inspect_spells_out_what_a_terminal_would_act_on(make: Make, run: Run):
    labels = json.dumps({"0": LABEL})
    mar = make(name=FORGED, **{"index_to_name.json": labels, "train_config.yaml": json.dumps({"data": LABEL})})
    shown = run("inspect", mar)
    assert shown.returncode == 1 and is_harmless(shown.stdout)
    assert f"1: {SPELT}" in shown.stdout
    assert not [line for line in shown.stdout.splitlines() if line.startswith("signed    by release")]
    assert max(map(len, shown.stdout.splitlines())) <= 100
    answer = json.loads(run("inspect", mar, "--json").stdout)
    assert (answer["name"], answer["classes"]) == (FORGED, [LABEL])


def test_diff_and_its_patch_spell_out_what_a_terminal_would_act_on(make: Make, run: Run):
    old = make("old", **{"index_to_name.json": '{"0": "cat"}', "model/a.py": "x = 1\n"})
    code = f"if x:\n\ty = '{LABEL}'\n"
    new = make("new", name=FORGED, **{"index_to_name.json": json.dumps({"0": LABEL}), "model/a.py": code})
    shown = run("diff", old, new, "--patch")
    assert shown.returncode == 0 and is_harmless(shown.stdout.replace("\t", ""))
    assert f"index 0: cat -> {SPELT}" in shown.stdout
    assert "+if x:\n+\ty = 'cat" + SPELT[3:8] in shown.stdout
    answer = json.loads(run("diff", old, new, "--json", "--patch").stdout)
    assert answer["new"]["name"] == FORGED and "\x1b[2K" in answer["patch"]


def make_provenance(*, name: str = "x", data: str = "photos", files: object = 5) -> str:
    """The text of a provenance.json of empty weights."""
    code = {"digest": {"dirHash": "0"}, "annotations": {"role": "build code", "git": "clean"}}
    split = {"annotations": {"role": "data", "split": "train", "files": files, "classes": {"cat": 5}}}
    run = {"first_epoch": 1, "versions": {}, "resumed": []}
    definition = {
        "externalParameters": {"model": {"name": name, "version": "1.0"}, "data": {"source": data, "seed": 0}},
        "internalParameters": {"trainingRun": run},
        "resolvedDependencies": [code, split],
    }
    definition["externalParameters"]["training"] = {"lr": LABEL}
    subject = [
        {"name": "weights.safetensors", "digest": {"sha256": hashlib.sha256(b"").hexdigest()}},
        {"name": "model/ handler/", "digest": {"dirHash": "0"}},
    ]
    predicate = {"buildDefinition": definition, "runDetails": {"builder": {"version": {}}}}
    statement = {"predicateType": "https://slsa.dev/provenance/v1", "subject": subject, "predicate": predicate}
    return json.dumps(statement)


def test_provenance_spells_out_what_a_terminal_would_act_on(make: Make, run: Run):
    text = make_provenance(name=FORGED, data=LABEL)
    mar = make(**{"provenance.json": text, "weights.safetensors": ""})
    shown = run("provenance", mar, group="")
    assert shown.returncode == 0 and is_harmless(shown.stdout)
    assert f"data       {SPELT}, seed 0\n" in shown.stdout
    assert not [line for line in shown.stdout.splitlines() if line.startswith("signed    by release")]
    assert json.loads(run("provenance", mar, "--json", group="").stdout)["name"] == FORGED


def test_provenance_that_cannot_be_told_is_one_line(make: Make, run: Run):
    mar = make(**{"provenance.json": make_provenance(files="five"), "weights.safetensors": ""})
    shown = run("provenance", mar, group="")
    assert shown.returncode == 1 and shown.stderr.count("\n") == 1
    assert "x.mar: cannot be read as a model archive" in shown.stderr


def test_the_name_of_a_file_forges_no_line_of_a_patch(make: Make, run: Run):
    shown = run("diff", make("old"), add(make("new"), "model/a\n+++ b/model\x1b[8m.py", "x = 1\n"), "--patch")
    assert "+++ b/model/a\\n+++ b/model\\x1b[8m.py\n" in shown.stdout
    assert is_harmless(shown.stdout)


def test_an_error_spells_out_the_names_that_it_quotes(make: Make, run: Run):
    mar = add(make(), "a\x1b[8m\nverified.py", "x = 1\n")
    for command in ("verify", "extract"):
        result = run(command, mar, *(["out"] if command == "extract" else []))
        assert result.returncode == 1 and result.stderr.count("\n") == 1
        assert r"a\x1b[8m\nverified.py: is not recorded in MAR-INF/integrity.json" in result.stderr


@pytest.mark.parametrize("path", ["spec.yaml", "model-config.yaml", "train_config.yaml"])
def test_a_yaml_bomb_is_one_line_instead_of_gigabytes(make: Make, run: Run, path: str):
    mar = make(**{path: BOMB})
    result = run("inspect", mar)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert f"({path}: line 2 holds the alias *a; expected YAML without aliases)" in result.stderr
    for read in (describe_archive, read_tree):
        with pytest.raises(ArchiveError, match=r"holds the alias \*a"):
            read(mar)


@pytest.mark.parametrize("path", ["spec.yaml", "model-config.yaml"])
def test_an_archive_of_ours_with_an_alias_is_read_by_nobody(make: Make, path: str):
    needed = {"spec.yaml": "network: x\n", "model-config.yaml": "", "index_to_name.json": "{}"}
    mar = make(**needed | {"weights.safetensors": "", path: "network: &a [x]\nb: *a\n"})
    with pytest.raises(ArchiveError, match=rf"{path}: line 2 holds the alias \*a"):
        read_contents(mar)


def test_what_json_has_no_word_for_is_text(make: Make, run: Run):
    text = "2001-01-01: 2001-99-99\nbytes: !!binary aGk=\nset: !!set {a, b}\n"
    mar = make(**{"model-config.yaml": text})
    answer = json.loads(run("inspect", mar, "--json").stdout)
    assert answer["model_config"] == {"2001-01-01": "2001-99-99", "bytes": "aGk=", "set": {"a": None, "b": None}}
