from pathlib import Path

from PIL import Image

from imgcls.data.checks import check_source
from imgcls.data.digests import hash_source
from imgcls.data.sources import open_source


def check(root: Path, **options: float) -> list[str]:
    source = open_source(str(root), **options)
    return check_source(source, hash_source(source))


def write_image(path: Path, *, shade: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), shade).save(path)


def write_splits(root: Path, *, test_shade: int, test_classes: tuple[str, ...]) -> None:
    for index, name in enumerate(("cats", "dogs")):
        for number in range(4):
            write_image(root / "train" / name / f"{number}.png", shade=10 * index + number)
    for index, name in enumerate(test_classes):
        write_image(root / "test" / name / "0.png", shade=test_shade + index)


def test_sound_source_has_no_warnings(tmp_path: Path) -> None:
    write_splits(tmp_path, test_shade=100, test_classes=("cats", "dogs"))
    assert check(tmp_path) == []


def test_image_in_two_splits_is_named_on_both_sides(tmp_path: Path) -> None:
    write_splits(tmp_path, test_shade=100, test_classes=("cats", "dogs"))
    write_image(tmp_path / "test" / "cats" / "copy.png", shade=100)
    for split in ("train", "test"):
        write_image(tmp_path / split / "cats" / "leak.png", shade=77)
    warnings = check(tmp_path, val_fraction=0)
    assert warnings == ["train and test share 1 image, byte for byte: train/cats/leak.png = test/cats/leak.png"]


def test_class_missing_from_a_split_is_named(tmp_path: Path) -> None:
    write_splits(tmp_path, test_shade=100, test_classes=("dogs",))
    assert check(tmp_path) == ["test: no image of 1 of 2 classes: cats"]
