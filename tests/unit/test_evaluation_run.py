import csv
import json
from itertools import count
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from typer.testing import CliRunner

from imgcls.cli.evaluate import evaluate
from imgcls.data.sources import open_source
from imgcls.errors import DataError, RunError, UsageError
from imgcls.evaluation.predict import predict_images, rename_classes
from imgcls.evaluation.reports import read_metrics
from imgcls.evaluation.run import evaluate_run, parse_tests
from imgcls.files import write_atomic
from model.classifier import Classifier
from model.network import build_network
from model.spec import ModelSpec, dump_spec

SHADES = {"bright": 200, "dark": 20}
SPEC = ModelSpec(size=4, resize=4, channels=1, mean=(0.0,), std=(1.0,), classes=("bright", "dark"))


def write_run(run: Path, *, config: str = "", bias: float = 0.0) -> Path:
    """Writes a run that tells bright from dark images by their mean."""
    run.mkdir(parents=True, exist_ok=True)
    state = {name: torch.zeros_like(tensor) for name, tensor in build_network(SPEC).state_dict().items()}
    state["features.0.0.weight"][0, 0, 1, 1] = 1.0
    state["classifier.1.weight"][0, :4] = 0.25
    state["classifier.4.weight"][0, 0] = 10.0
    state["classifier.4.bias"][1] = 5.0 + bias
    save_file(state, run / "weights.safetensors")
    (run / "spec.yaml").write_text(dump_spec(SPEC))
    if config:
        (run / "train_config.yaml").write_text(config)
    return run


def write_photos(root: Path, *, classes: tuple[str, ...] = ("dark", "bright"), count: int = 10) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (6, 6), SHADES.get(name, 0) + number).save(root / name / f"{number}.png")
    return root


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_file_is_written_and_tells_the_same(tmp_path: Path) -> None:
    run, photos = write_run(tmp_path / "run"), write_photos(tmp_path / "photos")
    report = evaluate_run(run, tests={"clean": str(photos)})["clean"].report
    assert (report.samples, report.accuracy, report.split, report.skipped) == (20, 1.0, "test", 0)
    assert (run / "confusion_clean.png").read_bytes().startswith(b"\x89PNG")
    rows = read_rows(run / "predictions_clean.csv")
    assert (
        [row["label"] for row in rows]
        == [row["predicted"] for row in rows]
        == [row["name"].split("/")[0] for row in rows]
    )
    assert read_metrics(run / "metrics.json").test_sets == {"clean": report}


def test_perturbed_set_is_worse_than_the_clean_one(tmp_path: Path) -> None:
    run, photos = write_run(tmp_path / "run"), write_photos(tmp_path / "photos")
    sets = evaluate_run(run, tests={"clean": str(photos), "night": f"{photos},brightness=0.3"})
    assert sets["clean"].report.accuracy == 1.0
    assert sets["night"].report.per_class["bright"].recall == 0.0


def test_sets_of_earlier_calls_are_kept_until_the_weights_change(tmp_path: Path) -> None:
    run, photos = write_run(tmp_path / "run"), write_photos(tmp_path / "photos")
    evaluate_run(run, tests={"one": str(photos)})
    evaluate_run(run, tests={"two": str(photos)})
    assert set(read_metrics(run / "metrics.json").test_sets) == {"one", "two"}
    write_run(run, bias=0.1)
    evaluate_run(run, tests={"three": str(photos)})
    assert set(read_metrics(run / "metrics.json").test_sets) == {"three"}


def read_set(run: Path, name: str) -> tuple[object, ...]:
    """What a run holds of a test set: its entry of metrics.json, and the bytes of its other files."""
    patterns = (f"*_{name}.*", f"evaluation/{name}.*")
    files = [path.read_bytes() for pattern in patterns for path in sorted(run.glob(pattern))]
    return read_metrics(run / "metrics.json").test_sets.get(name), *files


@pytest.mark.parametrize("writes", range(6))
def test_an_evaluation_that_is_killed_leaves_no_old_numbers_beside_new_files(
    writes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, photos = write_run(tmp_path / "run"), write_photos(tmp_path / "photos")
    evaluate_run(run, tests={"set": str(photos), "other": str(photos)})
    before, other, done = read_set(run, "set"), read_set(run, "other"), count()

    def write(path: Path, data: bytes | str) -> None:
        if next(done) == writes:
            raise KeyboardInterrupt
        write_atomic(path, data)

    for module in ("run", "stored", "reports"):
        monkeypatch.setattr(f"imgcls.evaluation.{module}.write_atomic", write)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run, tests={"set": f"{photos},brightness=0.3"})
    assert read_set(run, "other") == other
    assert read_set(run, "set") == before if writes == 0 else read_set(run, "set")[0] is None


def test_two_evaluations_at_once_keep_the_sets_of_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, photos = write_run(tmp_path / "run"), write_photos(tmp_path / "photos")
    other = Thread(target=lambda: evaluate_run(run, tests={"two": str(photos)}, progress=False))

    def write(path: Path, data: bytes | str) -> None:
        if other.ident is None:  # the first has read metrics.json, and is about to write it
            other.start()
            other.join(timeout=1)  # s; it is done by then, or waits
        write_atomic(path, data)

    monkeypatch.setattr("imgcls.evaluation.run.plot_confusion", lambda *_, **__: b"")
    monkeypatch.setattr("imgcls.evaluation.reports.write_atomic", write)
    evaluate_run(run, tests={"one": str(photos)})
    other.join()
    assert set(read_metrics(run / "metrics.json").test_sets) == {"one", "two"}


def test_without_tests_the_runs_own_data_is_split_as_in_training(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", count=40)
    run = write_run(tmp_path / "run", config=f"data: {photos}\nseed: 7\ntest_fraction: 0.25\nlr: 0.1\n")
    assert evaluate_run(run, tests={})["test"].report.samples == 20
    expected = open_source(str(photos), seed=7, test_fraction=0.25).splits["test"].samples
    assert [row["name"] for row in read_rows(run / "predictions_test.csv")] == [sample.name for sample in expected]


def test_classes_are_matched_by_name_not_by_position(tmp_path: Path) -> None:
    run, photos = write_run(tmp_path / "run"), write_photos(tmp_path / "photos" / "test", classes=("dark",))
    report = evaluate_run(run, tests={"nights": str(photos.parent)})["nights"].report
    assert report.accuracy == 1.0
    assert report.per_class["dark"].support == 10


def test_unknown_class_is_one_clear_error(tmp_path: Path) -> None:
    run, photos = write_run(tmp_path / "run"), write_photos(tmp_path / "photos", classes=("dark", "blue"))
    with pytest.raises(DataError, match="test has images of 'blue', which the run was not trained on"):
        evaluate_run(run, tests={"odd": str(photos)})


def test_a_bad_test_set_is_found_before_any_is_measured(tmp_path: Path) -> None:
    run, photos = write_run(tmp_path / "run"), str(write_photos(tmp_path / "photos"))
    with pytest.raises(UsageError, match="colour"):
        evaluate_run(run, tests={"good": photos, "bad": f"{photos},colour=3"})
    assert not (run / "metrics.json").exists()


def test_a_config_that_is_none_is_told_in_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "train_config.yaml").write_text("data: 2020-99-99")
    with pytest.raises(RunError, match=r"train_config\.yaml: cannot be read: month must be in 1\.\.12"):
        evaluate_run(run, tests={})


def test_data_of_a_run_that_is_not_here_is_named_with_its_file(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    (run / "train_config.yaml").write_text("data: elsewhere")
    with pytest.raises(UsageError, match=r"train_config\.yaml: data: 'elsewhere' is no such .*; say what to evaluate"):
        evaluate_run(run, tests={})


def test_corrupt_file_is_left_out_and_reported_and_refused_where_strict(tmp_path: Path) -> None:
    run, photos = write_run(tmp_path / "run"), write_photos(tmp_path / "photos" / "test").parent
    (photos / "test" / "dark" / "3.png").write_bytes(b"")
    found = evaluate_run(run, tests={"t": str(photos)})["t"]
    assert (found.report.samples, found.report.skipped) == (19, 1)
    assert [problem.name for problem in found.problems] == ["test/dark/3.png"]
    with pytest.raises(DataError, match=r"1 of 20 files cannot be decoded: test/dark/3\.png"):
        evaluate_run(run, tests={"t": str(photos)}, strict=True)


def test_split_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    run, photos = write_run(tmp_path / "run"), write_photos(tmp_path / "photos" / "test").parent
    with pytest.raises(DataError, match="has no val split; it has test"):
        evaluate_run(run, tests={"t": f"{photos},split=val"})


def test_little_memory_gives_the_same_answers(tmp_path: Path) -> None:
    classifier = Classifier.load(write_run(tmp_path / "run"))
    images = rename_classes(open_source(str(write_photos(tmp_path / "photos"))).splits["train"], SPEC.classes)
    whole, parts = (predict_images(classifier, images, memory_bytes=size) for size in (1 << 20, 50))
    assert whole.names == parts.names
    assert np.allclose(whole.probabilities, parts.probabilities, atol=1e-6)


@pytest.mark.parametrize("text", ["digits", "=digits", "a=", "../up=digits", "digits,noise=25"])
def test_test_that_is_no_name_and_source_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected NAME=SOURCE"):
        parse_tests([text])


def test_tests_keep_their_order_and_their_settings() -> None:
    assert list(parse_tests(["b=digits,noise=25", "a=digits"]).items()) == [("b", "digits,noise=25"), ("a", "digits")]
    with pytest.raises(UsageError, match="names 'a' twice"):
        parse_tests(["a=digits", "a=digits"])


def test_run_that_cannot_be_used_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="names no data; say what to evaluate with --test"):
        evaluate_run(write_run(tmp_path / "run"), tests={})
    with pytest.raises(RunError, match=r"is no run directory, spec\.yaml is not in it"):
        evaluate_run(tmp_path / "none", tests={"t": "digits"})
    (tmp_path / "run" / "metrics.json").write_text("{}")
    with pytest.raises(RunError, match="cannot be read as metrics"):
        evaluate_run(tmp_path / "run", tests={"t": str(write_photos(tmp_path / "photos"))})


def test_command_prints_json_for_machines_and_a_table_for_people(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(evaluate)
    run, photos = write_run(tmp_path / "run"), write_photos(tmp_path / "photos")
    (photos / "dark" / "notes.txt").write_text("x")
    arguments = [str(run), "--test", f"clean={photos}", "--out", str(tmp_path / "out")]
    machine = CliRunner().invoke(app, [*arguments, "--json"])
    assert json.loads(machine.stdout)["clean"]["accuracy"] == 1.0
    assert "left out dark/notes.txt: not an image file" in machine.stderr
    people = CliRunner().invoke(app, arguments)
    assert "100.00%" in people.stdout
    assert (tmp_path / "out" / "metrics.json").exists()
    assert not (run / "metrics.json").exists()
