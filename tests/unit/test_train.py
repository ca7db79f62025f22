import csv
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

from imgcls.data.images import ImageSet, Sample
from imgcls.data.pixels import PixelDataset, load_pixels
from imgcls.errors import DataError, RunError, UsageError
from imgcls.training.batches import Batches
from imgcls.training.checkpoint import read_newest
from imgcls.training.config import read_config
from imgcls.training.start import decide_spec, with_statistics
from model.classifier import Classifier
from model.errors import SpecError
from model.labels import read_labels
from model.spec import ModelSpec, read_spec

RUN_FILES = ["checkpoints", "golden", "history.csv", "index_to_name.json", "spec.yaml", "train_config.yaml"]
RUN_FILES = sorted([*RUN_FILES, "rejections.csv", "train_record.json", "weights.safetensors"])


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def read_weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "weights.safetensors")


def are_equal(one: Path, other: Path) -> bool:
    a, b = read_weights(one), read_weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def wait_for(process: subprocess.Popen, text: str) -> str:
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"{text!r} never came; exit status {process.wait()}")


def read_history(run: Path) -> list[dict[str, str]]:
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory, train_command, photos) -> dict[str, tuple[Path, str]]:
    """Two runs that got Ctrl-C, in their first and in a later epoch, with what they printed then.

    They start together, as importing torch is most of their time.
    """
    runs = {name: tmp_path_factory.mktemp("interrupted") / name for name in ("first", "later")}
    slow = ("--batch-size", 1, "--parameters", '{"widths": [64, 64], "hidden": 256}')
    with (
        train_command("--data", "digits", "--out", runs["first"], *slow) as first,
        train_command("--data", photos, "--epochs", 100_000, "--out", runs["later"]) as later,
    ):
        assert "1 x 8 x 8 input, 10 classes, on " in wait_for(first, "simple_cnn: ")
        time.sleep(0.3)
        printed = {"first": interrupt(first)}
        wait_for(later, "epoch 2/100000")
        printed["later"] = interrupt(later)
    return {name: (run, printed[name]) for name, run in runs.items()}


def interrupt(process: subprocess.Popen) -> str:
    process.send_signal(signal.SIGINT)
    text = process.stderr.read()
    assert process.wait(30) == 130, text
    return text


def test_ctrl_c_in_a_later_epoch_keeps_the_best_weights_and_resume_goes_on(interrupted, train):
    run, printed = interrupted["later"]
    assert "the best weights; go on with --resume" in printed
    assert "Traceback" not in printed
    assert names_in(run) == RUN_FILES
    done = len(read_history(run))
    assert 2 <= done < 100_000
    arguments = ["--config", run / "train_config.yaml", "--resume", "--epochs", done + 1]
    assert train.main([str(value) for value in arguments]) == 0
    assert [int(row["epoch"]) for row in read_history(run)] == list(range(1, done + 2))


def test_ctrl_c_in_the_first_epoch_keeps_a_run_that_can_be_served(interrupted):
    run, printed = interrupted["first"]
    steps = int(re.search(r"interrupted after (\d+) steps of epoch 1", printed)[1])
    assert 0 < steps < 1257
    assert "the unfinished weights; go on with --resume" in printed
    assert "Traceback" not in printed
    assert names_in(run) == [name for name in RUN_FILES if name != "history.csv"]
    assert read_newest(run)["progress"]["step"] == steps
    assert Classifier.load(run).spec.size == 8


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--lr", "-1"], 2, "settings: lr: Input should be greater than 0 (got '-1')"),
        (["--resume"], 1, "{run}: has no checkpoint to resume from; leave --resume off"),
    ],
)
def test_a_refusal_is_one_line_and_an_exit_status(tmp_path, monkeypatch, capsys, arguments, status, message):
    monkeypatch.setattr(sys, "argv", ["train.py", "--out", str(tmp_path / "run"), *arguments])
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="__main__")
    signal.signal(signal.SIGTERM, handler)
    assert caught.value.code == status
    assert capsys.readouterr().err == f"error: {message}\n".format(run=tmp_path / "run")


def test_a_run_directory_is_complete(tmp_path, train_photos, photos):
    run = tmp_path / "run"
    assert train_photos(run, "--golden", 5, "--channels", 3, epochs=2) == 0
    assert names_in(run) == RUN_FILES
    spec = read_spec(run / "spec.yaml")
    assert (spec.channels, spec.size, spec.resize, spec.classes) == (3, 8, 8, ("blue", "green", "red"))
    assert read_labels(run / "index_to_name.json", count=3) == spec.classes
    golden = sorted((run / "golden").iterdir())
    assert [file.name for file in golden] == ["0.png", "1.png", "2.png", "3.png", "4.png"]
    originals = {file.read_bytes() for file in photos.rglob("*.png")}
    assert {file.read_bytes() for file in golden} <= originals
    assert [row["epoch"] for row in read_history(run)] == ["1", "2"]
    assert yaml.safe_load((run / "train_config.yaml").read_text())["epochs"] == 2
    assert Classifier.load(run).spec == spec


def test_it_learns(tmp_path, train_photos):
    train_photos(tmp_path / "run", epochs=12)
    assert float(read_history(tmp_path / "run")[-1]["val_accuracy"]) == 1.0


def test_the_same_seed_gives_the_same_weights(tmp_path, train_photos):
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        train_photos(tmp_path / name, "--seed", seed, "--flip", "--shift", 1)
    assert are_equal(tmp_path / "one", tmp_path / "same")
    assert not are_equal(tmp_path / "one", tmp_path / "other")


def test_the_weights_are_those_of_the_epoch_that_is_asked_for(tmp_path, train_photos):
    """At this learning rate an epoch in between is the best."""
    for select in ("best", "last"):
        train_photos(tmp_path / select, "--select", select, "--lr", 0.5, epochs=6)
    accuracies = [float(row["val_accuracy"]) for row in read_history(tmp_path / "last")]
    assert accuracies.index(max(accuracies)) < 5, accuracies
    network = read_newest(tmp_path / "last")["parts"]["network"]
    last, best = (load_file(tmp_path / select / "weights.safetensors") for select in ("last", "best"))
    assert all(torch.equal(tensor, network[name]) for name, tensor in last.items())
    assert not all(torch.equal(tensor, network[name]) for name, tensor in best.items())


@pytest.mark.parametrize("schedule", ["constant", "cosine", "one-cycle"])
def test_every_schedule_and_option_trains(tmp_path, train_photos, schedule):
    parameters = '{"widths": [4, 8], "hidden": 8, "norm": "batch", "dropout": 0.2}'
    options = ("--parameters", parameters, "--nesterov", "--weight-decay", 1e-4, "--label-smoothing", 0.1)
    assert train_photos(tmp_path / "run", "--schedule", schedule, *options, epochs=2) == 0
    assert min(row["lr"] for row in read_newest(tmp_path / "run")["progress"]["history"]) >= 0


def test_resume_gives_what_an_uninterrupted_run_gives(tmp_path, train_photos):
    options = ("--parameters", '{"widths": [4], "dropout": 0.3}', "--flip", "--shift", 1)
    train_photos(tmp_path / "whole", *options, epochs=3)
    train_photos(tmp_path / "parts", *options, epochs=1)
    train_photos(tmp_path / "parts", *options, "--resume", epochs=3)
    assert are_equal(tmp_path / "whole", tmp_path / "parts")
    assert [row["epoch"] for row in read_newest(tmp_path / "parts")["progress"]["history"]] == [1, 2, 3]
    assert yaml.safe_load((tmp_path / "parts" / "train_config.yaml").read_text())["epochs"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--size", 4), "was trained with another size, resize,.* than the settings"),
        (("--parameters", '{"widths": [4]}'), "another parameters"),
        (("--interpolation", "bicubic"), "another interpolation"),
        (("--mean", "[0, 0, 0]"), "another mean than"),
    ],
)
def test_resume_with_another_network_or_preprocessing_is_refused(tmp_path, train_photos, options, message):
    train_photos(tmp_path / "run")
    before = (tmp_path / "run" / "weights.safetensors").read_bytes()
    with pytest.raises(RunError, match=message):
        train_photos(tmp_path / "run", "--resume", *options, epochs=2)
    assert (tmp_path / "run" / "weights.safetensors").read_bytes() == before


def test_a_run_is_replaced_only_when_asked_and_then_wholly(tmp_path, train_photos):
    run = tmp_path / "run"
    train_photos(run, epochs=2)
    (run / "metrics.json").write_text("{}")
    (run / "confusion_clean.png").write_text("")
    with pytest.raises(RunError, match="holds a run already; give another --out, or --overwrite, or --resume"):
        train_photos(run)
    train_photos(run, "--overwrite", "--golden", 1)
    assert names_in(run) == RUN_FILES
    assert len(read_history(run)) == 1
    assert len(list((run / "golden").iterdir())) == 1


def test_files_that_are_no_runs_are_never_removed(tmp_path, train_photos, photos):
    data = shutil.copytree(photos, tmp_path / "data")
    (data / "red").rename(data / "golden")
    for options in ((), ("--overwrite",)):
        with pytest.raises(RunError, match="holds files that are no run's; give another --out"):
            train_photos(data, *options, data=data)
    assert len(list((data / "golden").iterdir())) == 12


@pytest.mark.parametrize(
    ("batch_size", "reason"),
    [
        (1, r"\d+ of the last \d+ steps were skipped, the last for its .* of (nan|inf); lower --lr, which is 1e\+06"),
        (8, r"epoch 1: the validation loss is (nan|inf): the network has diverged; .*; lower --lr, which is 1e\+06"),
    ],
    ids=["within an epoch", "after one"],
)
def test_a_run_that_diverges_stops_with_the_reason(tmp_path, train_photos, batch_size, reason):
    with pytest.raises(RunError, match=reason):
        train_photos(tmp_path / "run", "--lr", 1e6, "--batch-size", batch_size, epochs=5)
    assert "weights.safetensors" not in names_in(tmp_path / "run")


def test_a_large_golden_image_is_made_small(tmp_path, train_photos):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    for name in ("a", "b"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(noise + number).save(tmp_path / "data" / name / f"{number}.bmp")
    train_photos(tmp_path / "run", "--size", 8, data=tmp_path / "data")
    files = list((tmp_path / "run" / "golden").iterdir())
    assert len(files) == 2  # all of the validation split
    assert max(file.stat().st_size for file in files) < 10_000


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (("--network", "timm/nothing"), SpecError),
        (("--parameters", '{"width": 3}'), SpecError),
        (("--weights", "nowhere.safetensors"), RunError),
        (("--mean", "[0.5]"), UsageError),
        (("--strict",), DataError),
    ],
)
def test_a_refused_overwrite_leaves_the_old_run_as_it_was(tmp_path, train_photos, photos, options, error):
    broken = shutil.copytree(photos, tmp_path / "broken")
    (broken / "red" / "00.png").write_bytes(b"")
    run = tmp_path / "run"
    train_photos(run)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    with pytest.raises(error):
        train_photos(run, "--overwrite", *options, data=broken)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_weights_of_the_run_that_is_overwritten_can_be_the_start(tmp_path, train_photos):
    run = tmp_path / "run"
    train_photos(run, epochs=8)
    weights = ("--weights", run / "weights.safetensors")
    assert train_photos(run, "--overwrite", *weights, "--lr", 1e-9) == 0
    assert float(read_history(run)[0]["train_accuracy"]) > 0.6


def test_a_corrupt_file_is_left_out_and_named_and_strict_refuses_it(tmp_path, train_photos, photos, capsys):
    data = shutil.copytree(photos, tmp_path / "data")
    (data / "red" / "03.png").write_bytes((data / "red" / "03.png").read_bytes()[:60])
    assert train_photos(tmp_path / "run", data=data) == 0
    text = capsys.readouterr().err
    assert "left out: red/03.png: " in text
    assert "files left out while decoding: 1" in text
    with pytest.raises(DataError, match=r"red/03\.png"):
        train_photos(tmp_path / "strict", "--strict", data=data)
    assert not (tmp_path / "strict" / "weights.safetensors").exists()


def test_a_source_without_a_val_split_gets_one_from_train(tmp_path, train_photos, photos):
    for split in ("train", "test"):
        shutil.copytree(photos, tmp_path / "data" / split)
    assert train_photos(tmp_path / "run", data=tmp_path / "data") == 0
    assert read_history(tmp_path / "run")[0]["val_accuracy"]


@pytest.mark.parametrize(("split", "missing"), [("test", "train"), ("val", "train")])
def test_a_source_without_training_images_is_refused(tmp_path, train_photos, photos, split, missing):
    shutil.copytree(photos, tmp_path / "data" / split)
    with pytest.raises(DataError, match=f"has no {missing} split"):
        train_photos(tmp_path / "run", data=tmp_path / "data")


def test_a_val_split_of_other_classes_is_refused(tmp_path, train_photos, photos):
    shutil.copytree(photos, tmp_path / "data" / "train")
    shutil.copytree(photos / "red", tmp_path / "data" / "val" / "yellow")
    with pytest.raises(DataError, match="has no val split"):
        train_photos(tmp_path / "run", data=tmp_path / "data")


def test_an_out_that_cannot_be_written_is_refused(tmp_path, train_photos):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be made"):
        train_photos(tmp_path / "file" / "run")


def test_the_last_layer_of_given_weights_may_differ_and_other_networks_are_refused(tmp_path, train_photos, photos):
    train_photos(tmp_path / "three", epochs=4)
    two = shutil.copytree(photos, tmp_path / "photos")
    shutil.rmtree(two / "red")
    weights = ("--weights", tmp_path / "three" / "weights.safetensors", "--lr", 1e-9)
    train_photos(tmp_path / "two", *weights, data=two)
    old, new = read_weights(tmp_path / "three"), read_weights(tmp_path / "two")
    assert torch.allclose(old["features.0.0.weight"], new["features.0.0.weight"], atol=1e-6)
    assert new["classifier.4.weight"].shape[0] == 2
    with pytest.raises(RunError, match=r"only \d of the network's \d tensors fit"):
        train_photos(tmp_path / "other", *weights, "--parameters", '{"widths": [5], "hidden": 6}')
    with pytest.raises(UsageError, match="--pretrained is for timm networks"):
        train_photos(tmp_path / "other", "--pretrained")


def decide(images: ImageSet, *flags: str) -> ModelSpec:
    return decide_spec(read_config(flags, description=""), images)


def make_images(encode, *images: Image.Image) -> ImageSet:
    samples = tuple(Sample(str(n), n % 2, partial(encode, image, "PNG")) for n, image in enumerate(images))
    return ImageSet("train", ("a", "b"), samples)


@pytest.mark.parametrize(
    ("mode", "size", "channels", "side"),
    [
        ("L", (8, 8), 1, 8),
        ("1", (28, 28), 1, 28),
        ("I;16", (20, 30), 1, 20),
        ("RGB", (32, 32), 3, 32),
        ("RGBA", (96, 64), 3, 64),
        ("RGB", (97, 64), 3, 224),
    ],
)
def test_channels_and_size_are_read_off_the_images(encode, mode, size, channels, side):
    spec = decide(make_images(encode, *[Image.new(mode, size)] * 3))
    assert (spec.channels, spec.size, spec.resize) == (channels, side, side)
    given = decide(make_images(encode, Image.new(mode, size)), "--channels", "4", "--size", "16", "--resize", "18")
    assert (given.channels, given.size, given.resize) == (4, 16, 18)


def test_mean_and_std_are_measured_over_all_classes_and_not_on_the_first_images():
    pixels = torch.zeros(30_000, 1, 2, 2, dtype=torch.uint8)
    pixels[15_000:] = 255  # sorted by class, as a split is
    spec = ModelSpec(channels=1, size=2, resize=2, mean=(0,), std=(1,), classes=("a", "b"))
    measured = with_statistics(spec, read_config([], description=""), pixels)
    assert (measured.mean, measured.std) == ((0.5,), (0.5,))
    given = with_statistics(spec, read_config(["--mean", "[0.1]"], description=""), pixels)
    assert (given.mean, given.std) == ((0.1,), (0.5,))


def test_batches_are_the_same_from_memory_and_on_demand(encode):
    images = make_images(encode, *(Image.new("L", (2, 2), 10 * n) for n in range(7)))
    spec = ModelSpec(channels=1, size=2, resize=2, mean=(0,), std=(1,), classes=("a", "b"))
    found = []
    for data in (load_pixels(images, spec), PixelDataset(images, spec)):
        batches = Batches(data, batch_size=3, shuffle=False, workers=0)
        drawn = list(batches.draw())
        assert [len(batch.labels) for batch in drawn] == [3, 3, 1]
        assert len(batches) == 3
        assert batches.names == ("0", "1", "2", "3", "4", "5", "6")
        training = Batches(data, batch_size=3, shuffle=True, workers=0)
        assert [len(batch.labels) for batch in training.draw()] == [3, 3]  # batch norm needs two
        assert len(training) == 2
        assert batches.sample_pixels().shape == (7, 1, 2, 2)
        found.append(drawn + list(Batches(data, batch_size=4, shuffle=True, workers=0).draw(1)))
    for one, other in zip(*found, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert sorted(int(pixel) for batch in found[0][3:] for pixel in batch.pixels[:, 0, 0, 0]) == [*range(0, 70, 10)]


def test_the_order_is_a_function_of_seed_and_epoch_and_can_be_entered_anywhere(encode):
    images = make_images(encode, *(Image.new("L", (2, 2), n) for n in range(20)))
    data = load_pixels(images, ModelSpec(channels=1, size=2, resize=2, mean=(0,), std=(1,), classes=("a", "b")))

    def order(epoch: int, seed: int = 0, first: int = 0) -> list[int]:
        drawn = Batches(data, batch_size=4, shuffle=True, workers=0, seed=seed).draw(epoch, first=first)
        return [int(index) for batch in drawn for index in batch.indices]

    assert order(1) == order(1)
    assert len({tuple(order(epoch, seed)) for epoch in (1, 2) for seed in (0, 1)}) == 4
    assert order(1, first=3) == order(1)[12:]
    assert order(1, first=5) == []
