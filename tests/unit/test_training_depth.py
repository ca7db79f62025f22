"""16-bit pictures: said where their high byte tells nothing, and compared by all of their bits."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from imgcls.care.examine import examine
from imgcls.data.bands import read_deep
from imgcls.data.sources import open_source
from imgcls.errors import UsageError
from imgcls.training.bands import check_depth
from imgcls.training.config import read_config
from model.tiff import write_tiff


def configure(*flags: object):
    return read_config([str(flag) for flag in flags], description="")


def write_pictures(folder: Path, *, low: int, high: int, kind: str = "png") -> Path:
    """A lower and a higher half of this range, 12 gray images each."""
    draws, middle = np.random.default_rng(0), (low + high) // 2
    for name, start, end in (("dim", low, middle), ("lit", middle, high)):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            samples = draws.integers(start, end, (8, 8)).astype(np.uint16)
            Image.fromarray(samples).save(folder / name / f"{number:02}.{kind}")
    return folder


def read_files(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.rglob("*.*"))]


@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_pictures_whose_high_byte_says_nothing_are_refused_with_the_flag_that_trains_them(tmp_path, train_photos, kind):
    data = write_pictures(tmp_path / "data", low=600, high=760, kind=kind)
    expected = r"fill 600 to 759 .* only 1 of 256 levels; give --ranges '\[\[600, 759\]\]'$"
    with pytest.raises(UsageError, match=expected):
        train_photos(tmp_path / "run", data=data)
    assert train_photos(tmp_path / "run", "--ranges", "[[600, 759]]", "--lr", 0.1, data=data, epochs=8) == 0
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    assert max(float(row.split(",")[5]) for row in rows[1:]) == 1.0


def test_pictures_that_fill_less_than_half_are_trained_with_a_warning(tmp_path, train_photos, capsys):
    data = write_pictures(tmp_path / "data", low=0, high=4096)
    assert train_photos(tmp_path / "run", data=data) == 0
    printed = capsys.readouterr().err
    assert re.search(r"^warning: .* only 16 of 256 levels; give --ranges '\[\[\d+, 40\d\d\]\]'$", printed, re.MULTILINE)
    full = read_files(write_pictures(tmp_path / "full", low=0, high=40_000))
    assert check_depth(configure(), full) is None


def test_a_run_that_goes_on_is_warned_only_and_a_private_one_told_no_numbers(tmp_path):
    files = read_files(write_pictures(tmp_path / "data", low=600, high=760))
    assert "give --ranges '[[600, 759]]'" in check_depth(configure("--resume"), files)
    assert "give --ranges '[[600, 759]]' without --channels" in check_depth(
        configure("--resume", "--channels", 3), files
    )
    with pytest.raises(UsageError, match="give --ranges as the camera has them") as caught:
        check_depth(configure("--dp-noise", 1), files)
    assert "600" not in str(caught.value)


def test_a_few_deep_pictures_among_others_are_no_matter(tmp_path):
    files = read_files(write_pictures(tmp_path / "data", low=600, high=760))
    Image.new("L", (8, 8)).save(tmp_path / "plain.png")
    assert check_depth(configure(), [*files, *[(tmp_path / "plain.png").read_bytes()] * len(files)]) is None


def test_colours_of_16_bits_are_measured_where_they_can_be_read(encode):
    samples = np.full((3, 4, 4), 700, np.uint16)
    samples[0, 0] = 500
    with pytest.raises(UsageError, match=r"--ranges '\[\[500, 700\], \[700, 701\], \[700, 701\]\]'$"):
        check_depth(configure(), [write_tiff(samples)])
    assert read_deep(b"\x89PNG") is None
    assert read_deep(b"II*\x00") is None


def test_the_data_report_tells_16_bit_pictures_apart_by_all_of_their_bits(tmp_path):
    samples = np.arange(600, 664, dtype=np.uint16).reshape(8, 8)
    widened = np.arange(64, dtype=np.uint8).reshape(8, 8)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    for level in range(5):
        Image.new("L", (8, 8), level).save(tmp_path / "b" / f"{level}.png")
    for name, pixels in {
        "one.png": samples,
        "same.tiff": samples,
        "other.png": samples[::-1].copy(),
        "plain.png": widened,
        "widened.png": widened.astype(np.uint16) * 257,
    }.items():
        Image.fromarray(pixels).save(tmp_path / "a" / name)
    images, problems = examine(open_source(str(tmp_path)), progress=False)
    digest = {Path(image.sample.name).name: image.sha256 for image in images}
    assert not problems
    assert digest["one.png"] == digest["same.tiff"] != digest["other.png"]
    assert digest["plain.png"] == digest["widened.png"]
