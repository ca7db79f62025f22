import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from imgcls.errors import ServingError
from imgcls.serving import server
from imgcls.serving.environment import serving_environment
from imgcls.serving.errors import AlreadyRunningError, NotRunningError
from imgcls.serving.ports import ports_from
from imgcls.serving.state import LONGEST_TEMPORARY_PATH_BYTES, ServerState, StateFolder, find_process
from imgcls.serving.tokens import Token, read_tokens


def make_state(temporary: Path, *, pid: int, created_s: float) -> ServerState:
    return ServerState(
        server_id="test-state",
        pid=pid,
        created_s=created_s,
        ports=ports_from(9000),
        inference_url="http://127.0.0.1:9000",
        management_url="http://127.0.0.1:9001",
        token_required=True,
        archive=Path("model_store/imgcls.mar"),
        model="imgcls",
        version="1.0",
        temporary=temporary,
    )


def test_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    state = make_state(tmp_path / "tmp", pid=1, created_s=2.5)
    folder.write(state)
    assert folder.read() == state


def test_pid_that_another_process_got_is_not_the_server(tmp_path: Path) -> None:
    created_s = psutil.Process().create_time()
    assert find_process(make_state(tmp_path, pid=os.getpid(), created_s=created_s)) is not None
    assert find_process(make_state(tmp_path, pid=os.getpid(), created_s=created_s - 60)) is None


def test_no_server_and_a_gone_one_are_told_apart(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with pytest.raises(NotRunningError, match="no server was started"):
        folder.read_running()
    folder.write(make_state(tmp_path / "tmp", pid=os.getpid(), created_s=0))
    with pytest.raises(NotRunningError, match="is gone"):
        folder.read_running()


@pytest.mark.parametrize("text", ["", "{}", '{"pid": "x"}', "[1]"])
def test_broken_state_is_one_clear_error(tmp_path: Path, text: str) -> None:
    folder = StateFolder(tmp_path)
    folder.state_file.write_text(text)
    with pytest.raises(ServingError, match="is broken"):
        folder.read()


def test_stop_removes_what_a_crash_has_left_and_may_be_repeated(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.create()
    state = make_state(folder.make_temporary(), pid=os.getpid(), created_s=0)
    folder.write(state)
    folder.key_file.write_text("{}")
    assert server.stop(folder) is False
    assert not state.temporary.exists() and not folder.key_file.exists() and folder.read() is None
    assert server.stop(folder) is False


def test_deep_state_folder_gets_a_short_temporary_one(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / ("d" * LONGEST_TEMPORARY_PATH_BYTES))
    folder.create()
    temporary = folder.make_temporary()
    assert len(os.fsencode(temporary)) <= LONGEST_TEMPORARY_PATH_BYTES
    temporary.rmdir()


def test_environment_cannot_override_the_configuration(tmp_path: Path) -> None:
    given = {
        "TS_INFERENCE_ADDRESS": "http://0.0.0.0:1",
        "PYTHONPATH": "/repository",
        "LOG_LOCATION": "/x",
        "HOME": "/h",
    }
    environment = serving_environment(given, temporary=tmp_path)
    assert set(environment) == {"HOME", "TMPDIR", "TEMP", "PYTHONUNBUFFERED"}


def test_tokens_are_read_with_their_expiry(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    path.write_text(
        '{"management": {"key": "m", "expiration time": "3026-03-26T07:48:40.931949756Z"},'
        ' "inference": {"key": "i", "expiration time": "2020-03-26T07:48:40Z"}, "API": {"key": "a"}}'
    )
    tokens = read_tokens(path)
    assert [tokens.management.key, tokens.inference.key, tokens.api.key] == ["m", "i", "a"]
    assert [tokens.management.is_expired, tokens.inference.is_expired, tokens.api.is_expired] == [False, True, False]
    assert not Token("k", datetime.now(UTC) + timedelta(minutes=1)).is_expired


@pytest.mark.parametrize("text", ["", "{}", "[]"])
def test_broken_key_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key_file.json"
    path.write_text(text)
    with pytest.raises(ServingError, match="tokens cannot be read"):
        read_tokens(path)


def test_only_one_start_at_a_time_in_a_state_folder(tmp_path: Path) -> None:
    with StateFolder(tmp_path).lock(), pytest.raises(AlreadyRunningError), StateFolder(tmp_path).lock():
        pass
    with StateFolder(tmp_path).lock():
        pass
