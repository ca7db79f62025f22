"""The access log as a rollout reads it: line by line, across its rotation, and whatever a crash has left."""

import json
from pathlib import Path
from types import SimpleNamespace

from imgcls.gateway.access_log import KEPT, LogTail, parse_record, rotate
from imgcls.gateway.envoy import Admin
from imgcls.gateway.listeners import EnvoyPaths
from imgcls.rollout.observe import Observer, read_answer, sample_of


def line(number: int, **fields) -> bytes:
    record = {"time": "1.5", "request_id": str(number), "cluster": "imgcls@2.0", "status": 200, "duration_ms": 20}
    return json.dumps(record | fields).encode() + b"\n"


def read(tail: LogTail) -> list[str]:
    return [record.request_id for record in tail.read()]


def test_what_is_added_is_read_once_and_half_a_line_when_it_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    log.write_bytes(line(0))
    tail = LogTail(log)
    with log.open("ab") as file:
        file.write(line(1) + line(2)[:20])
        file.flush()
        assert read(tail) == ["1"]
        file.write(line(2)[20:])
    assert read(tail) == ["2"]
    assert read(tail) == []
    assert read(LogTail(log, from_start=True)) == ["0", "1", "2"]


def test_nothing_is_lost_when_the_log_is_rotated(tmp_path: Path) -> None:
    paths = EnvoyPaths(tmp_path, tmp_path)
    paths.access_log.write_bytes(line(999))
    tail = LogTail(paths.access_log)
    for number in range(KEPT + 3):
        with paths.access_log.open("ab") as file:
            file.write(line(number) + line(number + 100))
        rotate(paths, Admin(paths.admin_socket), largest_bytes=1)
        paths.access_log.write_bytes(line(number + 200))
        assert read(tail) == [str(number), str(number + 100), str(number + 200)]
        assert read(tail) == []
    assert len(list(tmp_path.glob("access.log.*"))) == KEPT


def test_a_line_that_is_broken_is_left_out_and_one_without_a_version_has_none() -> None:
    assert parse_record(b'{"time": ') is None
    assert parse_record(b"[]") is None
    record = parse_record(line(1, cluster=None, status=0, flags="DC"))
    assert record is not None
    assert (record.model, record.version, record.status, record.flags) == (None, None, 0, "DC")


def test_answers_are_sampled_from_the_beginning_on_also_when_the_clock_is_set(tmp_path: Path, monkeypatch) -> None:
    paths = EnvoyPaths(tmp_path, tmp_path)
    clock = SimpleNamespace(wall_s=100_000.0, running_s=50.0)
    monkeypatch.setattr(
        "imgcls.rollout.observe.time",
        SimpleNamespace(time=lambda: clock.wall_s, monotonic=lambda: clock.running_s),
    )

    def answered(number: int, *, ago_s: float, passed_s: float = 10.0) -> list[str]:
        clock.wall_s, clock.running_s = clock.wall_s + passed_s, clock.running_s + passed_s
        with paths.access_log.open("ab") as file:
            file.write(line(number, time=str(clock.wall_s - ago_s)))
        return [sample.request_id for sample in observer.read()]

    observer = Observer(paths, model="imgcls", versions=("2.0",))
    assert answered(0, ago_s=11) == []  # it was asked before
    assert answered(1, ago_s=1) == ["1"]
    clock.wall_s -= 3600
    assert answered(2, ago_s=1) == ["1", "2"]
    clock.wall_s += 7200
    assert answered(3, ago_s=1) == ["1", "2", "3"]


def test_an_answer_for_one_image_becomes_a_sample_with_its_best_class() -> None:
    answer = {"predictions": [{"label": "cat", "index": 0, "probability": 0.9}, {"label": "dog", "probability": 0.1}]}
    record = parse_record(line(1, answer=json.dumps(answer)))
    assert record is not None
    sample = sample_of(record, is_shadow=True)
    assert (sample.label, sample.probability, sample.probabilities) == ("cat", 0.9, {"cat": 0.9, "dog": 0.1})
    assert (sample.version, sample.is_shadow, round(sample.time_s, 3)) == ("2.0", True, 1.52)
    for other in (None, "", "no json", '{"results": []}', '{"predictions": {}}', '{"predictions": [1]}'):
        assert read_answer(other) == (None, {})
