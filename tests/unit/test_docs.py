"""What the documentation says is there: files, verbs, commands and flags."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from imgcls.cli.main import app
from imgcls.training.config import TrainConfig

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:^|[ `/])imgcls (?P<words>[a-z][a-z-]*(?: [a-z]+){0,2})(?P<rest>[^\n`]*)")
MAKE = re.compile(r"(?:^    |`)make (?P<verb>[a-z0-9-]+)", re.MULTILINE)
LINK = re.compile(r"\]\((?!http)(?P<path>[^)#]+)")


def command_tree() -> dict[str, typer.core.TyperCommand]:
    """Every command by its words, such as "archive build" or "gateway keys create"."""

    def walk(command, words):
        for name, sub in getattr(command, "commands", {}).items():
            yield from walk(sub, [*words, name])
        if not hasattr(command, "commands"):
            yield " ".join(words), command

    return dict(walk(typer.main.get_command(app), []))


def find_command(text: str) -> str | None:
    tree = command_tree()
    words = text.split()
    return next((name for end in (3, 2, 1) if (name := " ".join(words[:end])) in tree), None)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document):
    missing = [path for path in LINK.findall(document.read_text()) if not (document.parent / path).exists()]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_make_verbs_exist(document):
    verbs = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(MAKE.findall(document.read_text())) <= verbs


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_and_their_flags_exist(document):
    tree = command_tree()
    lines = [line for line in document.read_text().splitlines() if line.startswith("    ") or "`imgcls" in line]
    for match in COMMAND.finditer("\n".join(lines)):
        name = find_command(match["words"])
        if name is None:
            assert match["words"].split()[0] in {"archive", "command"}, f"{document.name}: {match[0]}"
            continue
        known = {flag for parameter in tree[name].params for flag in (*parameter.opts, *parameter.secondary_opts)}
        assert set(re.findall(r"(?<= )--[a-z-]+", match["rest"])) <= known, match[0]


def test_readme_flags_of_train_py_exist():
    known = {f"--{name.replace('_', '-')}" for name in TrainConfig.model_fields} | {"--config"}
    for line in (ROOT / "README.md").read_text().splitlines():
        if "train.py" in line and "--help" not in line:
            assert set(re.findall(r"--[a-z-]+", line)) <= known, line


@pytest.mark.parametrize("name", sorted(command_tree()))
def test_every_flag_and_command_has_a_help_text(name):
    command = command_tree()[name]
    assert command.help
    assert not [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]


def test_the_table_of_flags_is_that_of_train_py():
    """The descriptions and defaults of docs/training.md are those of --help, and no flag is missing or left over."""
    rows = re.findall(
        r"^\| `--([a-z-]+)` \| (?:`(.*)`)? ?\| (.+) \|$", (ROOT / "docs/training.md").read_text(), re.MULTILINE
    )
    documented = {name.replace("-", "_"): (default, text) for name, default, text in rows if name != "config"}
    assert len(rows) == len(documented) + 1
    expected = {}
    for name, field in TrainConfig.model_fields.items():
        default = field.get_default(call_default_factory=True)
        expected[name] = ("" if default in (None, False, {}) else str(default), field.description)
    assert documented == expected


def test_help_of_train_py_fits_two_screens():
    command = [sys.executable, "train.py", "--help"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(shown) <= 100
    assert max(map(len, shown)) <= 120


def test_train_py_is_read_in_one_sitting():
    assert len((ROOT / "train.py").read_text().splitlines()) < 300


def test_every_setting_of_training_has_a_description():
    assert not [name for name, field in TrainConfig.model_fields.items() if not field.description]


def test_make_help_lists_every_verb():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for verb in ("demo", "serve", "test", "lint", "bench", "help"):
        assert f"make {verb} " in listed


def test_build_mar_is_a_thin_front_door():
    lines = (ROOT / "build_mar.sh").read_text().splitlines()
    assert len(lines) <= 20
    shown = subprocess.run([ROOT / "build_mar.sh", "--help"], capture_output=True, text=True, check=True).stdout
    assert "--version" in shown


def test_build_mar_without_an_environment_says_what_to_do(tmp_path: Path):
    """In the checkout, too, where `imgcls` is a folder."""
    front_door = tmp_path / "build_mar.sh"
    front_door.write_text((ROOT / "build_mar.sh").read_text())
    (tmp_path / "imgcls").mkdir()
    command = ["bash", front_door, "runs/x"]
    shown = subprocess.run(
        command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=False
    )
    assert (shown.returncode, shown.stderr) == (1, f"error: no imgcls here; run make setup in {tmp_path}\n")


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-serve.lock"])
def test_locks_hold_hashes_and_no_index_host(lock):
    text = (ROOT / lock).read_text()
    assert "://" not in text
    pinned = re.findall(r"^[a-z0-9][a-z0-9._-]*==", text, re.MULTILINE)
    assert len(pinned) > 30
    assert text.count("--hash=sha256:") >= len(pinned)


def test_light_install_needs_no_torch():
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'timm', 'numpy', 'PIL']))"
    script = f"{blocked}; sys.argv = ['imgcls', '--help']; from imgcls.cli.main import main; main()"
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "predict" in shown.stdout
