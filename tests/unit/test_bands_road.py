"""The road of a model of bands: trained, evaluated, reported, packed and answered like one of pictures."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from handler.pictures import draw_overlay
from imgcls.archive.build import build_archive
from imgcls.archive.make_golden import make_image
from imgcls.archive.testing import Request, load_archive
from imgcls.archive.words import describe_input
from imgcls.care.examine import examine
from imgcls.data.sources import open_source
from imgcls.errors import UsageError
from imgcls.evaluation.gallery import make_thumbnail
from imgcls.evaluation.robustness import measure_robustness
from imgcls.evaluation.run import evaluate_run
from imgcls.training.bands import decide_ranges
from imgcls.training.config import read_config
from model.bands import read_bands
from model.classifier import Classifier
from model.preprocess import pixels_from_bytes
from model.spec import read_spec
from model.tiff import write_tiff

BANDS = 6
# Reflectances of a field, a wood and a lake in blue, green, red, two of near infrared and one of short waves.
KINDS = {
    "field": (900, 1200, 800, 3000, 2500, 1900),
    "lake": (600, 500, 300, 150, 90, 50),
    "wood": (300, 500, 300, 2600, 1400, 600),
}


def configure(*flags: object):
    return read_config([str(flag) for flag in flags], description="")


def make_scene(kind: str, number: int, *, side: int = 12) -> np.ndarray:
    noise = np.random.default_rng([number, len(kind)]).normal(0, 100, (BANDS, side, side))
    return (np.array(KINDS[kind])[:, None, None] + noise).clip(0, 10_000).astype(np.uint16)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    for kind in KINDS:
        (root / kind).mkdir()
        for number in range(14):
            (root / kind / f"{number:02}.tif").write_bytes(write_tiff(make_scene(kind, number)))
    return root


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory, train_photos) -> Path:
    run = tmp_path_factory.mktemp("runs") / "bands"
    options = ("--lr", 0.05, "--flip", "--golden", 2, "--parameters", '{"widths": [8]}')
    assert train_photos(run, *options, data=scenes, epochs=12) == 0
    return run


def test_bands_and_their_ranges_are_measured(run: Path):
    spec = read_spec(run / "spec.yaml")
    assert (spec.channels, spec.size) == (BANDS, 12)
    for (low, high), levels in zip(spec.ranges, zip(*KINDS.values(), strict=True), strict=True):
        assert max(0, min(levels) - 500) <= low <= min(levels)
        assert max(levels) <= high <= max(levels) + 500


def test_it_learns_and_is_evaluated_also_on_noisy_bands(run: Path, scenes: Path):
    found = evaluate_run(
        run, tests={"clean": str(scenes), "noisy": f"{scenes},noise=10,rotate=10,blur=1"}, progress=False
    )
    assert found["clean"].report.accuracy == 1.0
    assert found["noisy"].report.accuracy >= 0.9
    images = open_source(str(scenes)).splits["train"]
    thumbnail = make_thumbnail(images.samples[0], spec=read_spec(run / "spec.yaml"))
    assert thumbnail.startswith("data:image/png;base64,")


def test_an_archive_answers_bands_as_the_run_does_and_refuses_pictures(run: Path, tmp_path: Path, encode):
    golden = sorted((run / "golden").iterdir())
    assert [file.name for file in golden] == ["0.tiff", "1.tiff"]
    mar = build_archive(run, tmp_path)
    scene = write_tiff(make_scene("wood", 99))
    pixels = pixels_from_bytes(scene, read_spec(run / "spec.yaml"))
    expected = Classifier.load(run).probabilities(pixels[None])[0]
    with load_archive(mar, batch_size=4) as served:
        picture = encode(np.zeros((12, 12, 3), np.uint8), "PNG")
        answers = served.predict([scene, picture, write_tiff(make_scene("wood", 1)[:4])])
        [explained] = served.explain([Request(scene, headers={"Accept": "image/png"})])
    assert [answer.status for answer in answers] == [200, 415, 415]
    best = answers[0].json()["predictions"][0]
    assert (best["label"], best["probability"]) == ("wood", pytest.approx(float(expected.max()), abs=1e-5))
    assert "no TIFF; this model takes a TIFF of 6 bands" in str(answers[1].json())
    assert "has 4 bands; this model takes 6" in str(answers[2].json())
    assert Image.open(io.BytesIO(explained.body)).mode == "RGB"


def test_a_run_without_golden_inputs_gets_made_bands(run: Path):
    spec = read_spec(run / "spec.yaml")
    made = make_image(spec)
    assert read_bands(made)[0].shape == (BANDS, 24, 24)
    assert pixels_from_bytes(made, spec).std() > 15


def test_large_bands_become_small_golden_inputs_with_their_own_samples(train_photos, tmp_path: Path):
    for kind in KINDS:
        (tmp_path / "large" / kind).mkdir(parents=True)
        for number in range(6):
            scene = make_scene(kind, number, side=200)
            (tmp_path / "large" / kind / f"{number}.tif").write_bytes(write_tiff(scene))
    train_photos(tmp_path / "run", "--size", 16, "--parameters", '{"widths": [4]}', data=tmp_path / "large")
    file = tmp_path / "run" / "golden" / "0.tiff"
    samples, _ = read_bands(file.read_bytes())
    assert file.stat().st_size < 40_000
    assert samples.shape[0] == BANDS
    assert samples[3].max() > 255


def test_the_data_report_reads_bands_and_tells_them_apart(scenes: Path):
    examined, problems = examine(open_source(str(scenes)), progress=False)
    assert not problems
    assert {(image.mode, image.format, image.width) for image in examined} == {("6 bands of 16 bits", "TIFF", 12)}
    assert len({image.sha256 for image in examined}) == len(examined) == 42
    assert examined[0].open().mode == "RGB"


def test_what_is_made_for_pictures_says_so(run: Path, scenes: Path, train_photos, tmp_path: Path):
    with pytest.raises(UsageError, match="takes bands, and ImageNet-C corrupts pictures"):
        measure_robustness(run, tests={"test": str(scenes)}, progress=False)
    with pytest.raises(UsageError, match="--auto-augment is for pictures; the images are bands"):
        train_photos(tmp_path / "run", "--auto-augment", "trivial", data=scenes)
    assert describe_input(read_spec(run / "spec.yaml")).startswith("Image of 6 bands (TIFF), shorter side")


@pytest.mark.parametrize(("count", "shown"), [(1, [0]), (2, [0]), (3, [0, 1, 2]), (4, [0, 1, 2]), (13, [0, 1, 2])])
def test_an_overlay_shows_the_first_bands_and_takes_none_for_alpha(count, shown):
    pixels = np.random.default_rng(0).integers(0, 256, (count, 256, 256), dtype=np.uint8)
    cold = np.zeros((2, 2), np.float32)
    overlay = Image.open(io.BytesIO(draw_overlay(pixels, cold, are_bands=True, texts={})))
    expected = np.broadcast_to(pixels[shown], (3, 256, 256)).transpose(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(overlay), expected)


FILES = [write_tiff(make_scene(kind, 0)) for kind in KINDS]
DEEP = [write_tiff(scene[:1]) for scene in (make_scene("wood", 1), make_scene("lake", 2))]


@pytest.mark.parametrize(
    ("flags", "files", "expected"),
    [
        ((), DEEP, None),
        (("--channels", 3), DEEP, None),
        (("--ranges", "[[0, 4095]]"), DEEP, ((0, 4095),)),
        (("--ranges", "[[5, 9]]", "--channels", 6), FILES, ((5, 9),) * 6),
        (("--ranges", "[[0,1],[0,2],[0,3],[0,4],[0,5],[0,6]]"), FILES, tuple((0, high) for high in range(1, 7))),
        (("--channels", 2), [write_tiff(np.zeros((2, 4, 4), np.uint8))], ((0, 255),) * 2),
        (("--dp-noise", 1), FILES, ((0, 65_535),) * 6),
        ((), [b"no image", *[write_tiff(np.full((5, 4, 4), 7, np.uint16))] * 2], ((7, 8),) * 5),
        ((), [*DEEP, FILES[0]], None),
    ],
)
def test_ranges_are_those_given_or_those_measured(flags, files, expected):
    assert decide_ranges(configure(*flags), files) == expected


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--ranges", "[[9, 9]]"), r"ranges has \[9, 9\]; expected the lower sample first"),
        (("--ranges", "[[0, 9], [0, 9]]", "--channels", 6), "ranges has 2 ranges; expected one for all, or 6"),
        (("--channels", 7), r"takes TIFFs of 7 bands; of the first 3 images none is one \(.*: 3 of 6\)"),
        (("--ranges", "[[0, 9], [0, 9]]"), "takes TIFFs of 2 bands"),
    ],
)
def test_ranges_that_do_not_fit_are_refused(flags, says):
    with pytest.raises(UsageError, match=says):
        decide_ranges(configure(*flags), FILES)
