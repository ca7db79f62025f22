import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imgcls.data.images import ImageSet, Sample
from imgcls.data.perturb import Perturbation
from imgcls.data.pixels import PixelDataset, drop_unreadable, estimate_bytes, load_pixels
from imgcls.data.zips import ZipReader
from imgcls.errors import DataError
from model.preprocess import pixels_from_bytes
from model.spec import ModelSpec

SPEC = ModelSpec(size=6, resize=8, mean=(0.5,) * 3, std=(0.5,) * 3, classes=("cat", "dog"))


def encode_noise(seed: int, *, kind: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def write_set(folder: Path, *, count: int = 6) -> ImageSet:
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(encode_noise(number))
    return ImageSet(
        "test", SPEC.classes, tuple(Sample(path.name, n % 2, path.read_bytes) for n, path in enumerate(paths))
    )


def test_pixels_are_those_that_serving_sees(tmp_path: Path) -> None:
    images = write_set(tmp_path)
    loaded = load_pixels(images, SPEC)
    expected = np.stack([pixels_from_bytes(sample.read(), SPEC) for sample in images.samples])
    assert np.array_equal(loaded.pixels.numpy(), expected)
    assert loaded.labels.tolist() == [0, 1, 0, 1, 0, 1]
    assert loaded.names == tuple(sample.name for sample in images.samples)
    assert (loaded.pixels.dtype, loaded.labels.dtype) == (torch.uint8, torch.int64)


def test_threads_change_nothing(tmp_path: Path) -> None:
    images = write_set(tmp_path, count=300)
    one, four = (load_pixels(images, SPEC, workers=workers) for workers in (1, 4))
    assert torch.equal(one.pixels, four.pixels)
    assert one.names == four.names


def test_files_that_cannot_be_decoded_are_left_out_and_named(tmp_path: Path) -> None:
    images = write_set(tmp_path)
    (tmp_path / "1.jpg").write_bytes(b"")
    (tmp_path / "2.jpg").write_bytes(encode_noise(2)[:100])
    (tmp_path / "4.jpg").unlink()
    loaded = load_pixels(images, SPEC)
    assert loaded.names == ("0.jpg", "3.jpg", "5.jpg")
    assert loaded.labels.tolist() == [0, 1, 1]
    assert loaded.pixels.shape == (3, 3, 6, 6)
    assert np.array_equal(loaded.pixels[1].numpy(), pixels_from_bytes(encode_noise(3), SPEC))
    assert [problem.name for problem in loaded.problems] == ["1.jpg", "2.jpg", "4.jpg"]
    assert "empty" in loaded.problems[0].reason


def test_strict_refuses_the_first_bad_files_with_their_count(tmp_path: Path) -> None:
    images = write_set(tmp_path)
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"4 of 6 files cannot be decoded: 0\.jpg: .*1\.jpg: .*2\.jpg: .*; …"):
        load_pixels(images, SPEC, strict=True)


def test_set_with_nothing_left_is_refused(tmp_path: Path) -> None:
    images = write_set(tmp_path, count=1)
    (tmp_path / "0.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match="1 of 1 files"):
        load_pixels(images, SPEC)
    with pytest.raises(DataError, match="the split is empty"):
        load_pixels(ImageSet("test", SPEC.classes, ()), SPEC)


def test_perturbation_does_not_depend_on_the_order_of_samples(tmp_path: Path) -> None:
    images = write_set(tmp_path)
    turned = ImageSet(images.name, images.classes, images.samples[::-1])
    noise = Perturbation(noise=30)
    one, other = (load_pixels(each, SPEC, perturb=noise).pixels for each in (images, turned))
    assert torch.equal(one, other.flip(0))
    assert not torch.equal(one, load_pixels(images, SPEC).pixels)


def test_estimate_is_what_the_pixels_take(tmp_path: Path) -> None:
    images = write_set(tmp_path)
    assert estimate_bytes(images, SPEC) == load_pixels(images, SPEC).pixels.nbytes


def test_data_set_on_demand_gives_the_same_pixels_after_pickling(tmp_path: Path) -> None:
    images = write_set(tmp_path)
    dataset = pickle.loads(pickle.dumps(PixelDataset(images, SPEC)))
    loaded = load_pixels(images, SPEC)
    items = [dataset[index] for index in range(len(dataset))]
    assert torch.equal(torch.stack([pixels for pixels, _ in items]), loaded.pixels)
    assert [label for _, label in items] == loaded.labels.tolist()


def test_data_set_on_demand_names_the_file_that_breaks_it(tmp_path: Path) -> None:
    images = write_set(tmp_path)
    (tmp_path / "3.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.jpg: the image is empty"):
        PixelDataset(images, SPEC)[3]
    readable, problems = drop_unreadable(images, SPEC)
    assert [sample.name for sample in readable.samples] == ["0.jpg", "1.jpg", "2.jpg", "4.jpg", "5.jpg"]
    assert [problem.name for problem in problems] == ["3.jpg"]


def test_zip_is_read_alike_by_many_threads_and_after_pickling(tmp_path: Path) -> None:
    data = {f"{number}.jpg": encode_noise(number) for number in range(200)}
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in data.items():
            archive.writestr(name, content)
    reader = ZipReader(tmp_path / "a.zip")
    assert reader.names() == list(data)
    copy = pickle.loads(pickle.dumps(reader))
    samples = tuple(Sample(name, 0, lambda name=name: copy.read(name)) for name in data)
    loaded = load_pixels(ImageSet("test", SPEC.classes, samples), SPEC, workers=8)
    assert np.array_equal(
        loaded.pixels.numpy(), np.stack([pixels_from_bytes(content, SPEC) for content in data.values()])
    )


def test_damaged_zip_member_is_one_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("good.png", encode_noise(0, kind="PNG"))
        archive.writestr("bad.png", encode_noise(1, kind="PNG"))
    content = path.read_bytes()
    place = content.index(encode_noise(1, kind="PNG")) + 60
    path.write_bytes(content[:place] + b"\0\0\0\0" + content[place + 4 :])
    reader = ZipReader(path)
    samples = tuple(Sample(name, 0, lambda name=name: reader.read(name)) for name in reader.names())
    loaded = load_pixels(ImageSet("test", SPEC.classes, samples), SPEC)
    assert loaded.names == ("good.png",)
    assert "cannot be read from the zip" in loaded.problems[0].reason
