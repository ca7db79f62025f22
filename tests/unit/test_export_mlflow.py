import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from imgcls.cli.main import app
from imgcls.errors import RunError, UsageError
from imgcls.evaluation.export_mlflow import IDENTITY_TAG, export_mlflow, hide_password
from imgcls.evaluation.run import evaluate_run

# SQLAlchemy 2.1's, of MLflow's own models
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
RECORD = {
    "code": {"git_commit": "a" * 40, "git_dirty": False, "sha256": "c0de", "locks": {}},
    "data": {
        "source": "photos",
        "splits": {"train": {"files": 3, "unreadable": 0, "classes": {"red": 3}, "sha256": "da7a"}},
    },
    "seed": 0,
    "device": "cpu",
    "parent": None,
    "versions": {"torch": "2.15.0"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with MLflow's database, which takes seconds to make."""
    return tmp_path_factory.mktemp("mlflow") / "store"


@pytest.fixture
def run(tmp_path: Path, write_run, request: pytest.FixtureRequest) -> Path:
    run = write_run(tmp_path / request.node.name)
    (run / "history.csv").write_text("epoch,lr,val_loss\n1,0.1,2.5\n2,0.05,nan\n")
    (run / "train_config.yaml").write_text("data: photos\nlr: 0.1\nparameters: {widths: [3]}\nsize: null\nout: x\n")
    (run / "train_record.json").write_text(json.dumps(RECORD))
    return run


def read_run(store: Path, run_id: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{store / 'mlflow.db'}"), MlflowClient(f"sqlite:///{store / 'mlflow.db'}").get_run(
        run_id
    )


def export(run: Path, store: Path) -> str:
    result = CliRunner().invoke(app, ["export-metrics", str(run), "--mlflow", str(store)], catch_exceptions=False)
    return result.stdout


def test_settings_numbers_origin_and_files_are_read_back(run: Path, store: Path, photos: Path) -> None:
    report = evaluate_run(run, tests={"t": str(photos)})["t"].report
    run_id = export(run, store).split()[3]
    client, logged = read_run(store, run_id)
    assert logged.info.status == "FINISHED"
    assert logged.info.run_name == run.name
    assert logged.data.params == {"data": "photos", "lr": "0.1", "parameters": '{"widths": [3]}'}
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "history/lr")] == [(1, 0.1), (2, 0.05)]
    assert [(m.step, m.value) for m in client.get_metric_history(run_id, "history/val_loss")] == [(1, 2.5)]
    assert logged.data.metrics["test/t/accuracy"] == report.accuracy
    assert logged.data.metrics["test/t/accuracy_low"] == report.intervals["accuracy"].low
    assert logged.data.tags["mlflow.source.git.commit"] == "a" * 40
    assert logged.data.tags["imgcls.data.train"] == "da7a"
    files = {Path(file.path).name for file in client.list_artifacts(run_id)}
    assert {"weights.safetensors", "metrics.json", "confusion_t.png", "train_record.json"} <= files
    assert (store / "artifacts" / run_id / "artifacts" / "spec.yaml").read_bytes() == (run / "spec.yaml").read_bytes()


def test_private_run_is_exported_without_digests_of_its_training_images(run: Path, store: Path) -> None:
    privacy = {"noise_multiplier": 1, "clip_norm": 1, "sample_rate": 0.1, "steps": 3, "epsilon": 2, "delta": 0.1}
    splits = {
        name: RECORD["data"]["splits"]["train"] | {"sha256": f"5ec2e7{name}"} for name in ("train", "val", "test")
    }
    record = RECORD | {"data": {"source": "photos", "splits": splits}, "privacy": privacy}
    (run / "train_record.json").write_text(json.dumps(record))
    run_id = export(run, store).split()[3]
    _, logged = read_run(store, run_id)
    tags = {key: value for key, value in logged.data.tags.items() if key.startswith("imgcls.data.")}
    assert tags == {"imgcls.data.test": "5ec2e7test"}
    text = (store / "artifacts" / run_id / "artifacts" / "train_record.json").read_text()
    assert "5ec2e7test" in text
    assert "5ec2e7train" not in text and "5ec2e7val" not in text
    for name in ("train", "val"):  # nor is it what the run is known by
        splits[name]["sha256"] = "another"
    (run / "train_record.json").write_text(json.dumps(record))
    assert export(run, store).split()[3] == run_id


def test_a_run_of_another_teacher_is_another_run(run: Path, store: Path) -> None:
    found = [export(run, store).split()[3]]
    for sha256 in ("a" * 64, "b" * 64):
        (run / "train_record.json").write_text(json.dumps(RECORD | {"teacher": {"name": "large", "sha256": sha256}}))
        found.append(export(run, store).split()[3])
    assert len(set(found)) == 3


def test_exporting_again_goes_on_with_the_same_run(run: Path, store: Path, photos: Path) -> None:
    first = export(run, store)
    assert first.startswith("made MLflow run")
    again = export(run, store)
    assert again.startswith(f"updated MLflow run {first.split()[3]} ")
    assert ": 0 new numbers" in again
    (run / "history.csv").write_text("epoch,lr,val_loss\n1,0.1,2.5\n2,0.05,nan\n3,0.02,1.5\n")
    record = RECORD | {"resumed": [{"first_epoch": 3, "first_step": 8, "changed": {}}]}
    (run / "train_record.json").write_text(json.dumps(record))
    evaluate_run(run, tests={"t": str(photos)})
    assert export(run, store).startswith("updated")
    client, logged = read_run(store, first.split()[3])
    assert [m.step for m in client.get_metric_history(logged.info.run_id, "history/lr")] == [1, 2, 3]
    tag = logged.data.tags[IDENTITY_TAG]
    assert len(client.search_runs([logged.info.experiment_id], f"tags.`{IDENTITY_TAG}` = '{tag}'")) == 1


def test_run_that_was_moved_and_resumed_is_the_same_run(run: Path, store: Path, tmp_path: Path) -> None:
    run_id = export(run, store).split()[3]
    (tmp_path / "elsewhere").mkdir()
    moved = run.rename(tmp_path / "elsewhere" / run.name)
    config = moved / "train_config.yaml"
    config.write_text(config.read_text().replace("out: x", "out: elsewhere"))
    assert export(moved, store).startswith(f"updated MLflow run {run_id} ")


def test_run_whose_export_breaks_off_has_failed_until_it_is_exported_again(
    run: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("imgcls.evaluation.export_mlflow._log_numbers", fail)
        with pytest.raises(RunError, match="MLflow failed: disk is full; exporting again goes on"):
            export_mlflow(run, str(store))
    again = export(run, store)
    assert again.startswith("updated")
    client, logged = read_run(store, again.split()[3])
    assert logged.info.status == "FINISHED"
    monkeypatch.setattr("imgcls.evaluation.export_mlflow._log_numbers", fail)
    with pytest.raises(RunError):
        export_mlflow(run, str(store))
    assert client.get_run(logged.info.run_id).info.status == "FAILED"


def test_database_by_its_uri_is_that_of_its_folder(run: Path, store: Path) -> None:
    run_id = export(run, store).split()[3]
    done = export_mlflow(run, f"sqlite:///{store / 'mlflow.db'}", experiment="another")
    assert done.run_id != run_id
    assert (store / "artifacts" / done.run_id / "artifacts" / "spec.yaml").is_file()
    assert not Path("mlruns").exists()


def test_run_of_other_settings_or_another_name_is_another_run(run: Path, store: Path) -> None:
    first = export(run, store)
    other = shutil.copytree(run, run.with_name(f"{run.name}-other"))
    assert export(other, store).startswith("made")
    (run / "train_config.yaml").write_text("lr: 0.2\n")
    second = export(run, store)
    assert second.startswith("made")
    assert second.split()[3] != first.split()[3]


def test_run_that_was_trained_anew_is_refused_and_nothing_is_logged(run: Path, store: Path) -> None:
    run_id = export(run, store).split()[3]
    (run / "history.csv").write_text("epoch,lr,val_loss\n1,0.1,2.5\n2,0.07,1.0\n")
    with pytest.raises(RunError, match=rf"{run_id} has history/lr 0\.05 of epoch 2, and the run has 0\.07"):
        export_mlflow(run, str(store))
    client, logged = read_run(store, run_id)
    assert logged.info.status == "FINISHED"
    assert [m.value for m in client.get_metric_history(run_id, "history/val_loss")] == [2.5]


def test_run_that_was_deleted_in_mlflow_is_made_again(run: Path, store: Path) -> None:
    run_id = export(run, store).split()[3]
    client, _ = read_run(store, run_id)
    client.delete_run(run_id)
    assert export(run, store).startswith("made")


def test_missing_mlflow_is_one_line_that_says_what_installs_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(
        RunError, match=r"MLflow is not installed \(mlflow is missing\); install it: pip install 'imgcls\[mlflow\]'"
    ):
        export_mlflow(run, str(tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def test_missing_driver_of_a_database_is_one_line_that_names_it(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymysql", None)
    with pytest.raises(RunError, match=r"^mysql\+pymysql://host/db: MLflow needs .* 'pymysql' .*pip install pymysql$"):
        export_mlflow(run, "mysql+pymysql://me:s3cr@t@host/db")


def test_uri_that_is_none_is_one_line_without_the_password(run: Path) -> None:
    with pytest.raises(UsageError, match=r"^http://\[bad: is no URI: [^\n]+; expected a folder, or such as") as caught:
        export_mlflow(run, "http://me:s3cret@[bad")
    assert "s3cret" not in str(caught.value)


def test_server_that_does_not_answer_is_one_line_without_the_password(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RunError, match=r"^http://127\.0\.0\.1:9: MLflow failed: [^\n]*$") as caught:
        export_mlflow(run, "http://me:secret@127.0.0.1:9")
    assert "secret" not in str(caught.value)


def test_places_that_mlflow_no_longer_writes_to_and_no_place_are_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="give a folder"):
        export_mlflow(run, f"file://{tmp_path}")
    (tmp_path / "mlruns" / "0").mkdir(parents=True)
    (tmp_path / "mlruns" / "0" / "meta.yaml").write_text("")
    with pytest.raises(UsageError, match="migrate-filestore"):
        export_mlflow(run, str(tmp_path / "mlruns"))
    result = CliRunner().invoke(app, ["export-metrics", str(run)])
    assert isinstance(result.exception, UsageError)


def test_folder_that_cannot_be_made_is_named(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/store: cannot be written: Not a directory; choose another folder with --"):
        export_mlflow(run, str(tmp_path / "file" / "store"))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at https://me:s3cret@host/x", "at https://host/x"),
        ("postgresql://u:p@ss@host/db", "postgresql://host/db"),
        ("postgresql://u:p/s?s@host/db failed", "postgresql://host/db failed"),
        ("https://token@host", "https://host"),
        ("postgresql://host/db?user=u&password=p@ss&x=1", "postgresql://host/db?user=u&password=…&x=1"),
        ("mysql://u:p@host/db?Passwd=p", "mysql://host/db?Passwd=…"),
        ("http://host:5000/api?name=me@there failed", "http://host:5000/api?name=me@there failed"),
        ("sqlite:///a.db", "sqlite:///a.db"),
    ],
)
def test_password_of_a_uri_is_hidden(text: str, shown: str) -> None:
    assert hide_password(text) == shown
