import resource
import struct
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event
from typer.testing import CliRunner

from imgcls.cli.main import app
from imgcls.errors import RunError
from imgcls.evaluation.export import export_tensorboard
from imgcls.evaluation.run import evaluate_run


def read_events(folder: Path) -> list[Event]:
    """Reads TFRecords: a length of 8 bytes and its check, the event and its check."""
    [path] = folder.glob("events.out.tfevents.*")
    data, events, position = path.read_bytes(), [], 0
    while position < len(data):
        [length] = struct.unpack_from("<Q", data, position)
        events.append(Event.FromString(data[position + 12 : position + 12 + length]))
        position += length + 16
    return events


def test_history_metrics_and_pictures_are_read_back(tmp_path: Path, write_run, photos: Path):
    run = write_run(tmp_path / "run")
    (run / "history.csv").write_text("epoch,lr,val_loss,note\n1,0.1,2.5,\n2,0.05,nan,\n")
    report = evaluate_run(run, tests={"t": str(photos)})["t"].report
    for _ in range(2):  # the second replaces the first
        command = ["export-metrics", str(run), "--tensorboard", str(tmp_path / "logs")]
        assert "numbers to" in CliRunner().invoke(app, command, catch_exceptions=False).stdout
    values = [
        (value.tag, event.step, value)
        for event in read_events(tmp_path / "logs" / "run")
        for value in event.summary.value
    ]
    scalars = {(tag, step): value.simple_value for tag, step, value in values}
    assert scalars["history/lr", 2] == pytest.approx(0.05)
    assert scalars["history/val_loss", 1] == pytest.approx(2.5)
    assert ("history/val_loss", 2) not in scalars
    assert scalars["test/t/accuracy", 0] == pytest.approx(report.accuracy)
    assert scalars["test/t/accuracy_low", 0] == pytest.approx(report.intervals["accuracy"].low)
    [picture] = [value.image for tag, _, value in values if tag == "confusion/t"]
    assert picture.encoded_image_string.startswith(b"\x89PNG")


def test_run_without_numbers_is_refused(tmp_path: Path, write_run):
    run = write_run(tmp_path / "run")
    with pytest.raises(RunError, match=r"has neither history\.csv nor metrics\.json"):
        export_tensorboard(run, tmp_path / "logs")
    (run / "history.csv").write_text("epoch,lr\none,0.1\n")
    with pytest.raises(RunError, match=r"history\.csv: cannot be read"):
        export_tensorboard(run, tmp_path / "logs")


def test_a_full_disk_keeps_the_earlier_export_and_is_one_error(tmp_path: Path, write_run):
    run = write_run(tmp_path / "run")
    (run / "history.csv").write_text("epoch,lr\n" + "".join(f"{epoch},0.1\n" for epoch in range(1, 400)))
    export_tensorboard(run, tmp_path / "logs")
    earlier = len(read_events(tmp_path / "logs" / "run"))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
    try:
        with pytest.raises(RunError, match="logs/run: cannot be written: File too large; choose another folder with"):
            export_tensorboard(run, tmp_path / "logs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert len(read_events(tmp_path / "logs" / "run")) == earlier
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="file/run: cannot be written: Not a directory"):
        export_tensorboard(run, tmp_path / "file")
