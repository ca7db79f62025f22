import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from imgcls.errors import ServingError, UsageError
from imgcls.serving import server
from imgcls.serving.environment import serving_environment
from imgcls.serving.errors import AlreadyRunningError, ConfigError, NotReadyError, NotRunningError
from imgcls.serving.ports import ports_from
from imgcls.serving.state import LONGEST_TEMPORARY_PATH_BYTES, ServerState, StateFolder, find_process, read_start
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


def test_path_that_is_no_text_is_one_clear_error(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    with pytest.raises(ServingError, match="is not UTF-8; serve with other names"):
        folder.write(make_state(tmp_path / os.fsdecode(b"\xff"), pid=1, created_s=0))
    assert not list(tmp_path.iterdir())


def test_pid_that_another_process_got_is_not_the_server(tmp_path: Path) -> None:
    created_s = psutil.Process().create_time()
    assert find_process(make_state(tmp_path, pid=os.getpid(), created_s=created_s)) is not None
    assert find_process(make_state(tmp_path, pid=os.getpid(), created_s=created_s - 60)) is None


@pytest.mark.skipif(read_start(os.getpid()) is None, reason="this system does not tell when a process was started")
def test_clock_that_is_set_makes_no_server_gone_and_no_other_process_the_server(tmp_path: Path) -> None:
    created_s = psutil.Process().create_time()
    state = make_state(tmp_path, pid=os.getpid(), created_s=created_s)
    set_forward = state.model_copy(update={"created_s": created_s - 3600, "started": read_start(os.getpid())})
    assert find_process(set_forward) is not None
    same_time = state.model_copy(update={"started": f"{read_start(os.getpid())}0"})
    assert find_process(same_time) is None


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


@pytest.mark.parametrize("name", ["logs/mine.log", "tmp/mine", "key_file.json", "lock", "state.json"])
def test_folder_with_files_of_someone_else_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    own = tmp_path / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("{}")
    folder = StateFolder(tmp_path)
    with pytest.raises(UsageError, match="holds files that are not imgcls'"):
        folder.prepare()
    with pytest.raises(UsageError, match="holds files that are not imgcls'"), folder.lock():
        pass
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [own] and own.read_text() == "{}"


@pytest.mark.parametrize("is_marked", [True, False])
def test_folder_of_an_earlier_server_is_used_again(tmp_path: Path, is_marked: bool) -> None:
    folder = StateFolder(tmp_path)
    if is_marked:
        folder.prepare()
    else:  # of a server that was started before there were marks
        folder.write(make_state(tmp_path / "tmp", pid=os.getpid(), created_s=0))
    folder.logs.mkdir(exist_ok=True)
    folder.model_log.write_text("old")
    folder.prepare()
    assert not folder.model_log.exists() and folder.mark_file.exists()


def test_configuration_in_the_state_folder_is_not_overwritten(tmp_path: Path, archive: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.prepare()
    folder.config_file.write_text("inference_address=http://127.0.0.1:9000\n")
    options = server.ServeOptions(archive=archive, config=folder.config_file, state=tmp_path)
    with pytest.raises(UsageError, match="each start would overwrite this file"):
        server.start(options)
    assert folder.config_file.read_text() == "inference_address=http://127.0.0.1:9000\n"


def test_archive_that_wants_more_workers_than_could_be_is_refused(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=200_000_000))
    (tmp_path / "config.properties").touch()
    options = server.ServeOptions(
        archive, tmp_path / "config.properties", tmp_path / "state", port=0, java="none, so that nothing is started"
    )
    with pytest.raises(UsageError, match=r"colors\.mar: minWorkers is 2; expected at most 1"):
        server.start(options)


def test_address_that_cannot_be_served_is_refused_also_where_ports_are_chosen(tmp_path: Path, archive: Path) -> None:
    (tmp_path / "config.properties").write_text("management_address=unix:/tmp/x\n")
    options = server.ServeOptions(archive, tmp_path / "config.properties", tmp_path / "state", port=0)
    with pytest.raises(ConfigError, match="imgcls serve wants http://HOST:PORT"):
        server.start(options)


@pytest.mark.parametrize(
    ("console", "reason"),
    [
        ("Model server started.\n", r"it ended without a word \(stopped or killed\?\)"),
        ("Model server started.\njava.io.IOException: Failed to bind\n\tat a.b(Error.java)\n", "IOException: Failed"),
        (
            "Unrecognized VM option 'X'\nError: Could not create the Java Virtual Machine.\n"
            "Error: A fatal exception has occurred. Program will exit.\n",
            "Unrecognized VM option",
        ),
    ],
)
def test_only_an_error_is_given_as_the_reason_of_an_end(tmp_path: Path, console: str, reason: str) -> None:
    folder = StateFolder(tmp_path)
    folder.prepare()
    state = make_state(tmp_path / "tmp", pid=os.getpid(), created_s=0)
    folder.write(state)
    folder.console_log.write_text(console)
    with pytest.raises(NotReadyError, match=f"TorchServe has ended: .*{reason}"):
        server.check_alive(state, folder)
    folder.state_file.unlink()
    with pytest.raises(NotReadyError, match="was stopped by imgcls stop"):
        server.check_alive(state, folder)


def test_stop_removes_what_a_crash_has_left_and_may_be_repeated(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / "state")
    folder.prepare()
    state = make_state(folder.make_temporary(), pid=os.getpid(), created_s=0)
    folder.write(state)
    folder.key_file.write_text("{}")
    assert server.stop(folder) is False
    assert not state.temporary.exists() and not folder.key_file.exists() and folder.read() is None
    assert server.stop(folder) is False


def test_deep_state_folder_gets_a_short_temporary_one(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / ("d" * LONGEST_TEMPORARY_PATH_BYTES))
    folder.prepare()
    temporary = folder.make_temporary()
    assert len(os.fsencode(temporary)) <= LONGEST_TEMPORARY_PATH_BYTES
    temporary.rmdir()


def test_environment_cannot_override_the_configuration(tmp_path: Path) -> None:
    given = {
        "TS_INFERENCE_ADDRESS": "http://0.0.0.0:1",
        "PYTHONPATH": "/repository",
        "LOG_LOCATION": "/x",
        "IMGCLS_WORKERS": "7",
        "HOME": "/h",
    }
    environment = serving_environment(given, temporary=tmp_path)
    assert set(environment) == {"HOME", "TMPDIR", "TEMP", "PYTHONUNBUFFERED", "ORT_DISABLE_TELEMETRY"}


@pytest.mark.parametrize(("given", "kept"), [("C", "C.UTF-8"), ("POSIX", "C.UTF-8"), ("de_DE.UTF-8", "de_DE.UTF-8")])
def test_java_can_open_paths_beyond_ascii(tmp_path: Path, given: str, kept: str) -> None:
    assert serving_environment({"LC_ALL": given}, temporary=tmp_path)["LC_ALL"] == kept


def test_workers_are_told_how_many_share_the_cores(tmp_path: Path) -> None:
    assert serving_environment({"IMGCLS_WORKERS": "7"}, temporary=tmp_path, workers=2)["IMGCLS_WORKERS"] == "2"


def test_tokens_are_read_with_their_expiry(tmp_path: Path) -> None:
    path = tmp_path / "key_file.json"
    path.write_text(
        '{"management": {"key": "m", "expiration time": "3026-03-26T07:48:40.931949756Z"},'
        ' "inference": {"key": "i", "expiration time": "2020-03-26T07:48:40"}, "API": {"key": "a"}}'
    )
    tokens = read_tokens(path)
    assert [tokens.management.key, tokens.inference.key, tokens.api.key] == ["m", "i", "a"]
    assert [tokens.management.is_expired, tokens.inference.is_expired, tokens.api.is_expired] == [False, True, False]
    assert not Token("k", datetime.now(UTC) + timedelta(minutes=1)).is_expired


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "{}",
            "[]",
            '{"inference": 1}',
            '{"inference": {"key": 1}, "management": {"key": "m"}, "API": {"key": "a"}}',
        ),
        '{"inference": {"key": "i\\n"}, "management": {"key": "m"}, "API": {"key": "a"}}',
        '{"inference": {"key": "\u043a"}, "management": {"key": "m"}, "API": {"key": "a"}}',
    ],
)
def test_broken_key_file_is_one_clear_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "key_file.json"
    path.write_text(text)
    with pytest.raises(ServingError, match="tokens cannot be read"):
        read_tokens(path)


def test_server_that_is_starting_is_not_said_to_be_broken(tmp_path: Path) -> None:
    with pytest.raises(ServingError, match="there are no tokens yet; TorchServe writes them as it starts"):
        read_tokens(tmp_path / "key_file.json")


def test_only_one_start_at_a_time_in_a_state_folder(tmp_path: Path) -> None:
    with StateFolder(tmp_path).lock(), pytest.raises(AlreadyRunningError), StateFolder(tmp_path).lock():
        pass
    with StateFolder(tmp_path).lock():
        pass
