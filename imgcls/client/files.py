"""Which files of a folder are images, by their names; the server judges the bytes."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from imgcls.errors import ClientError

# Those of imgcls.data.listing, which cannot be imported here as it needs numpy and Pillow.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def expand_folders(paths: Iterable[Path]) -> Iterator[Path]:
    """Yields each file as it is, and in place of a folder the image files directly in it, sorted by name.

    Raises:
        ClientError: a folder holds no image file, or cannot be read.
    """
    for path in paths:
        if path.is_dir():
            yield from _list_images(path)
        else:
            yield path


def _list_images(folder: Path) -> list[Path]:
    try:
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    except OSError as err:
        raise ClientError(f"{folder}: the folder cannot be read: {err.strerror}") from err
    if not images:
        raise ClientError(f"{folder}: no image file in this folder; expected {', '.join(IMAGE_SUFFIXES)}")
    return images
