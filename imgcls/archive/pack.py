"""Packs a staged tree into a .mar with torch-model-archiver's own manifest and zip functions.

Its command line is not used: it copies every input through one folder of the system's temporary directory, named after
the model, which two builds at once would share.
"""

from pathlib import Path

from model_archiver.model_archiver_config import ModelArchiverConfig
from model_archiver.model_archiver_error import ModelArchiverError
from model_archiver.model_packaging_utils import ModelExportUtils

from imgcls.archive.stage import CONFIG_FILE
from imgcls.errors import ArchiveError
from imgcls.files import sync
from model.classifier import WEIGHTS_FILE

HANDLER = "handler.image_classifier"  # TorchServe imports it by this name from the unpacked archive


def refuse_bad_names(*, name: str, version: str) -> None:
    """Raises ArchiveError where TorchServe does not accept the name, or the version cannot be part of a URL."""
    for what, text in (("name", name), ("version", version)):
        try:
            ModelExportUtils.check_model_name_regex_or_exit(text)
        except ModelArchiverError as err:
            expected = "letters, digits, '_', '-' and '.', the first a letter or digit"
            raise ArchiveError(f"{what} is {text!r}; expected {expected}") from err


def pack_archive(tree: Path, folder: Path, *, name: str, version: str) -> Path:
    """Packs a staged tree as `folder/name.mar`, entries stored uncompressed."""
    config = ModelArchiverConfig(
        model_name=name, handler=HANDLER, version=version, serialized_file=WEIGHTS_FILE, config_file=CONFIG_FILE
    )
    manifest = ModelExportUtils.generate_manifest_json(config)
    ModelExportUtils.archive(str(folder), name, str(tree), manifest, archive_format="zip-store")
    return folder / f"{name}.mar"


def publish(archive: Path, target: Path) -> None:
    """Moves a finished archive to its place at once: fsync, rename, fsync of the folder.

    Both must lie on one file system. A reader sees the old archive or the new one, never a part. Whatever the umask,
    everybody may read it: the server often runs as another user.
    """
    archive.chmod(0o644)
    sync(archive)
    archive.replace(target)
    sync(target.parent)
