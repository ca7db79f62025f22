"""Lint of what TorchServe is configured with: a key that it ignores silently is an error here.

    config.properties ─► lint_config        model-config.yaml, in an archive too ─► lint_model_config

Called by `imgcls lint`, `imgcls doctor`, `imgcls serve` and the build of an archive. The light install is enough.
"""

import json
from pathlib import Path

from imgcls.archive.contents import MANIFEST, open_archive, read_small
from imgcls.errors import UsageError
from imgcls.serving.lint_config import lint_config
from imgcls.serving.lint_keys import OUR_HANDLER
from imgcls.serving.lint_model import CONFIG_FILE, lint_model_config
from imgcls.serving.lint_rules import Finding

MAX_BYTES = 10 << 20


def lint_file(path: Path) -> list[Finding]:
    """Judges a file by its kind: a .mar's model-config.yaml, a .yaml as one, anything else as config.properties.

    A .yaml is taken for one that imgcls's handler reads.

    Raises:
        ArchiveError: the archive cannot be read.
        UsageError: the file cannot be read.
    """
    if path.suffix == ".mar":
        return lint_archive(path)
    if path.suffix in (".yaml", ".yml"):
        return _lint_yaml(_read(path), where=str(path))
    return lint_config_file(path)


def lint_config_file(path: Path) -> list[Finding]:
    """Judges a config.properties, whatever it is called.

    Raises:
        UsageError: the file cannot be read.
    """
    return lint_config(_decode_properties(_read(path)), where=str(path), folder=path.absolute().parent)


def lint_archive(mar: Path) -> list[Finding]:
    """Judges the model-config.yaml in an archive; one that has none is in order.

    The settings of the handler are judged where that is imgcls's.

    Raises:
        ArchiveError: the archive cannot be read.
    """
    with open_archive(mar) as archive:
        model = json.loads(read_small(archive, MANIFEST))["model"]
        name, is_ours = model.get("configFile"), model.get("handler") == OUR_HANDLER
        data = None if name is None else read_small(archive, str(name))  # without a name TorchServe reads none
    return [] if data is None else _lint_yaml(data, where=f"{mar}!{name}", is_ours=is_ours)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # a device, or what a pipe brings, has no size that could be asked for
    except OSError as err:
        raise UsageError(f"{path}: cannot be read ({err.strerror}); name the files to lint") from err
    if len(data) > MAX_BYTES:
        raise UsageError(f"{path}: has more than {MAX_BYTES:,} bytes; expected a file of settings")
    return data


def _lint_yaml(data: bytes, *, where: str, is_ours: bool = True) -> list[Finding]:
    try:
        return lint_model_config(data.decode(), where=where, is_ours=is_ours)
    except UnicodeDecodeError as err:
        return [Finding(where, data[: err.start].count(b"\n") + 1, "", "error", "is not UTF-8", "save it as UTF-8")]


def _decode_properties(data: bytes) -> str:
    """Decodes as a person meant it; Java takes each byte for a character, which the lint warns of where it matters."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


__all__ = [
    "CONFIG_FILE",
    "Finding",
    "lint_archive",
    "lint_config",
    "lint_config_file",
    "lint_file",
    "lint_model_config",
]
