import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from imgcls.serving import logs
from imgcls.serving.errors import WorkerFailedError
from imgcls.serving.readiness import LogWatch
from imgcls.serving.state import StateFolder

STAMP = "2026-11-23T07:53:12,0"
MODEL_LOG = "".join(
    f"{STAMP}{10 + number} [INFO ] W-9000-imgcls_1.0-stdout MODEL_LOG - {text}\n"
    for number, text in enumerate(
        [
            "Listening on port: /tmp/.ts.sock.9000",
            "[PID]6132",
            "model_name: imgcls, batchSize: 4",
            "Backend worker process died.",
            "Traceback (most recent call last):",
            '  File "image_classifier.py", line 50, in initialize',
            "    raise ValueError(...)",
            "ValueError: spec.yaml: size is 0",
            "expected at least 1",
        ]
    )
)
SERVER_LOG = f"{STAMP} [WARN ] W-9000-imgcls_1.0 org.pytorch.serve.wlm.BatchAggregator - Load model failed: imgcls\n"


@pytest.fixture
def folder(tmp_path: Path) -> StateFolder:
    folder = StateFolder(tmp_path)
    folder.logs.mkdir()
    return folder


def test_failure_is_the_workers_own_traceback(folder: StateFolder) -> None:
    folder.model_log.write_text(MODEL_LOG)
    folder.server_log.write_text(SERVER_LOG)
    failure = logs.find_failure(folder.model_log, folder.server_log)
    assert failure.reason == "ValueError: spec.yaml: size is 0"
    assert failure.details.startswith("Traceback") and failure.details.endswith("expected at least 1")


def test_killed_worker_that_said_nothing_is_reported_in_torchserves_words(folder: StateFolder) -> None:
    folder.model_log.write_text(MODEL_LOG.split(f"{STAMP}13")[0])
    folder.server_log.write_text(SERVER_LOG)
    failure = logs.find_failure(folder.model_log, folder.server_log)
    assert "killed" in failure.reason and "Load model failed" in failure.details


LOADED = "imgcls 1.0: simple_cnn, engine {'engine': 'torch', 'device': 'cpu'} (auto: the first of torch)"


def said_by(worker: int, text: str, *, stream: str = "stdout") -> str:
    return f"{STAMP}99 [INFO ] W-{worker}-imgcls_1.0-{stream} MODEL_LOG - {text}\n"


@pytest.mark.parametrize("last_words", [LOADED, "a warning of some library"])
def test_reason_is_the_failed_workers_though_another_spoke_last(folder: StateFolder, last_words: str) -> None:
    folder.model_log.write_text(MODEL_LOG + said_by(9001, last_words, stream="stderr"))
    failure = logs.find_failure(folder.model_log, folder.server_log)
    assert failure.reason == "ValueError: spec.yaml: size is 0"
    assert last_words not in failure.details


def test_reason_is_of_the_traceback_that_is_complete(folder: StateFolder) -> None:
    second = ("Traceback (most recent call last):", '  File "image_classifier.py", line 50, in initialize')
    folder.model_log.write_text(MODEL_LOG + "".join(said_by(9001, text) for text in second))
    failure = logs.find_failure(folder.model_log, folder.server_log)
    assert failure.reason == "ValueError: spec.yaml: size is 0"


def test_success_of_one_worker_is_no_reason_for_the_death_of_another(folder: StateFolder) -> None:
    folder.model_log.write_text(said_by(9001, LOADED))
    folder.server_log.write_text(SERVER_LOG)
    assert "killed" in logs.find_failure(folder.model_log, folder.server_log).reason


def test_handlers_own_success_line_is_known(
    load: Callable[..., object], archive: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        load(archive)
    assert any(logs.LOADED.search(message) for message in caplog.messages), caplog.messages


def test_archive_that_torchserve_refuses_is_not_taken_for_a_killed_worker(folder: StateFolder) -> None:
    folder.server_log.write_text(f"{STAMP} [WARN ] main org.pytorch.serve.ModelServer - Failed to load model: a.mar\n")
    failure = logs.find_failure(folder.model_log, folder.server_log)
    assert failure.reason == "TorchServe refused the archive"


def test_chained_exception_is_named_by_its_last(folder: StateFolder) -> None:
    lines = ["Traceback (x)", "  a", "KeyError: 1", "During handling:", "Traceback (x)", "  b", "RuntimeError: 2"]
    assert logs.reason_of(lines) == "RuntimeError: 2"


def test_watch_sees_only_what_happens_after_it_was_made(folder: StateFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.serving.readiness.LOG_FLUSH_S", 0)
    folder.model_log.write_text(MODEL_LOG)
    folder.server_log.write_text(SERVER_LOG)
    watch = LogWatch(folder)
    watch.raise_failure("imgcls")
    with folder.model_log.open("a") as log:
        log.write(MODEL_LOG.replace("size is 0", "size is -1"))
    with folder.server_log.open("a") as log:
        log.write(SERVER_LOG)
    with pytest.raises(WorkerFailedError, match="size is -1"):
        watch.raise_failure("imgcls")


def test_rolled_log_is_read_from_its_start(folder: StateFolder) -> None:
    folder.model_log.write_text("a\n")
    assert logs.read_lines(folder.model_log, offset=500) == ["a"]


def test_line_of_a_growing_log_is_shown_once_and_whole(folder: StateFolder) -> None:
    assert logs.read_on(folder.model_log, offset=7) == ([], 0)
    folder.model_log.write_text("a\nhalf")
    lines, offset = logs.read_on(folder.model_log, offset=0)
    assert lines == ["a"]
    with folder.model_log.open("a") as log:
        log.write(" more\nb\n")
    lines, offset = logs.read_on(folder.model_log, offset=offset)
    assert lines == ["half more", "b"]
    assert logs.read_on(folder.model_log, offset=offset) == ([], offset)
    folder.model_log.write_text("new\n")
    assert logs.read_on(folder.model_log, offset=offset) == (["new"], 4)


def test_log_configuration_is_well_formed() -> None:
    root = ElementTree.fromstring(logs.log4j_config())
    appenders = {element.get("name") for element in root.iter("RollingFile")}
    assert {element.get("ref") for element in root.iter("AppenderRef")} == appenders


def test_a_killed_server_is_not_blamed_on_the_missing_gpu(folder: StateFolder) -> None:
    missing = 'nvidia-smi not available or failed: Cannot run program "nvidia-smi": error=2, No such file or directory'
    folder.console_log.write_text(f"{missing}\nModel server started.\n")
    assert logs.reason_of_end(folder.console_log) == "it ended without a word (stopped or killed?)"
    folder.console_log.write_text(f"{missing}\nTerminating due to java.lang.OutOfMemoryError: Java heap space\n")
    assert "OutOfMemoryError" in logs.reason_of_end(folder.console_log)
