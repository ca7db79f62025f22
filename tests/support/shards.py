"""Small tar shards, and folders of images to make them from."""

import io
import tarfile
from pathlib import Path

from PIL import Image

from imgcls.data.images import DataSource


def encode_image(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade % 256, shade // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def write_tar(path: Path, files: dict[str, bytes] | list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items() if isinstance(files, dict) else files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def make_samples(count: int, *, first: int = 0) -> dict[str, bytes]:
    files = {}
    for number in range(first, first + count):
        files |= {f"{number:04}.png": encode_image(number), f"{number:04}.cls": str(number % 2).encode()}
    return files


def count_splits(source: DataSource) -> dict[str, int]:
    return {name: len(images) for name, images in source.splits.items()}


def write_folder(root: Path, *, count: int = 10) -> Path:
    for place, name in enumerate(("cats", "dogs.and.wolves", "ä b")):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.v2.png").write_bytes(encode_image(place * 256 + number))
    return root
