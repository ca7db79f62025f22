"""What a gateway's rollouts leave on the disk, read and pruned without a gateway that runs."""

import fcntl
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from imgcls.cli.main import app
from imgcls.gateway.errors import NoGatewayError
from imgcls.gateway.folder import GatewayFolder
from imgcls.gateway.table import Model, Table, Version, exclusive
from imgcls.rollout.errors import RolloutError
from imgcls.rollout.plan import Plan
from imgcls.rollout.prune import find_unneeded, remove
from imgcls.rollout.rollouts import is_run, new_rollout, read_files
from imgcls.rollout.state import Release, RolloutFiles, RolloutState


def release(version: str) -> Release:
    return Release(version=version, archive=f"imgcls-{version}.mar", tree_sha256="0" * 64, workers=1)


def entry(before: str, version: str) -> dict[str, object]:
    return {
        "time_s": 0.0,
        "model": "imgcls",
        "operator": "ops@host",
        "is_undo": False,
        "before": release(before).model_dump(),
        "release": release(version).model_dump(),
    }


def serving(version: str) -> Model:
    row = Version(version=version, archive=f"imgcls-{version}.mar", tree_sha256="0" * 64, workers=1, weight=100)
    return Model(name="imgcls", default=version, versions=(row,))


def rollout(version: str) -> RolloutState:
    state = new_rollout(serving("1"), Path("/new.mar"), Plan(), operator="ops@host")
    return state.model_copy(update={"candidate": release(version)})


@pytest.fixture
def folder(tmp_path: Path) -> GatewayFolder:
    folder = GatewayFolder(tmp_path / "state")
    folder.prepare()
    return folder


def run(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    return result.exit_code, result.stdout


def test_status_history_and_audit_are_read_while_no_gateway_runs(folder: GatewayFolder) -> None:
    files = read_files(folder)
    files.write(rollout("2"))
    files.append(files.history_file, entry("1", "2"))
    files.append(files.audit_file, {"event": "promoted"})
    status, text = run("rollout", "status", "--state", folder.state)
    assert (status, text.splitlines()[0]) == (1, "imgcls 1 to 2: running")
    assert "continue with imgcls rollout start, or go back with imgcls rollout abort" in text
    assert "1 to 2" in run("rollout", "history", "--state", folder.state)[1]
    assert json.loads(run("rollout", "audit", "--state", folder.state)[1]) == {"event": "promoted"}
    assert not is_run(files)


def test_whether_a_process_runs_it_is_told_to_everyone_and_where_nothing_can_be_written(folder: GatewayFolder) -> None:
    files = read_files(folder)
    assert not is_run(files)
    assert not files.lock_file.exists()  # as on a disk that has become read-only
    with exclusive(files.lock_file, busy="busy"):
        assert is_run(files)
    with files.lock_file.open("rb") as file:  # as another status does at the same moment
        fcntl.flock(file, fcntl.LOCK_SH)
        assert not is_run(files)


def test_a_state_folder_without_a_gateway_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoGatewayError, match=r"no gateway was served with the state folder .*--state"):
        read_files(GatewayFolder(tmp_path / "none"))
    assert not list(tmp_path.iterdir())


def test_a_state_that_cannot_be_written_names_its_file_and_what_to_do(tmp_path: Path) -> None:
    files = RolloutFiles(tmp_path / "gone")
    for write in (
        lambda: files.write(rollout("2")),
        lambda: files.append(files.audit_file, {}),
        lambda: files.put_request("pause"),
    ):
        with pytest.raises(RolloutError, match=r"gone/\w+\.jsonl?: cannot be written .*imgcls rollout abort"):
            write()


def unneeded(store: Path, *, last: RolloutState | None = None, keep: int) -> list[str]:
    found = find_unneeded(
        sorted(store.glob("*.mar")),
        table=Table(models=(serving("4"),)),
        history=[entry("1", "2"), entry("2", "3"), entry("3", "4")],
        last=last,
        keep=keep,
    )
    return [path.name for path in found]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    for version in "12345":
        (tmp_path / f"imgcls-{version}.mar").write_bytes(b"1234")
    return tmp_path


def test_prune_keeps_what_is_served_rolled_and_undone(store: Path) -> None:
    assert unneeded(store, keep=1) == ["imgcls-1.mar", "imgcls-2.mar", "imgcls-5.mar"]
    assert unneeded(store, keep=0) == ["imgcls-1.mar", "imgcls-2.mar", "imgcls-3.mar", "imgcls-5.mar"]
    assert unneeded(store, keep=9) == ["imgcls-5.mar"]
    assert unneeded(store, keep=9, last=rollout("5")) == []
    ended = rollout("5").model_copy(update={"status": "rolled-back"})
    assert unneeded(store, keep=9, last=ended) == ["imgcls-5.mar"]


def test_prune_takes_the_detached_signature_along(store: Path) -> None:
    (store / "imgcls-5.mar.sig").write_bytes(b"12")
    assert remove([store / "imgcls-5.mar"]) == 6
    assert not list(store.glob("imgcls-5*"))
