"""What an operator reads when gateway.yaml, or a second start, is wrong."""

import os
from pathlib import Path

import psutil
import pytest

from imgcls.errors import UsageError
from imgcls.gateway.errors import BusyError
from imgcls.gateway.folder import GatewayFolder, SupervisorState
from imgcls.gateway.process import run_background
from imgcls.gateway.settings import Settings, read_settings

WRONG = {
    "listn: {port: 1}": r"listn: unknown key \(meant listen\?\)",
    "limits: {max_in_fligth: 3}": r"limits\.max_in_fligth: unknown key \(meant max_in_flight\?\)",
    "access: {anonymous: false}\naccess: {anonymous: true}": r"cannot be read: access is there twice; .*line 2",
    "zzz: 1": r"zzz: unknown key; docs/operations\.md lists",
    "listen: {port: x}": r"listen\.port is 'x'; .*integer",
    "listen: {port: true}": r"listen\.port is True; .*valid integer",
    "limits: {requests_per_s: yes}": r"limits\.requests_per_s is True; .*valid number",
    "servers: [{name: main, gpus: [true]}]": r"servers\.0\.gpus is \[True\]; .*valid integer",
    "[a]": r"it is \['a'\]; expected keys with values",
    "listen: 8000": r"listen is 8000; expected keys with values",
    "limits: {requests_per_s: 1.0e-13}": r"limits\.requests_per_s is 1e-13; .*greater than or equal to 0\.000001",
    "limits: {client_requests_per_s: .inf}": r"limits\.client_requests_per_s is inf; .*than or equal to 1000000000",
    "limits: {request_timeout_s: 0.0004}": r"limits\.request_timeout_s is 0\.0004; .*greater than or equal to 0\.001",
    "listen: {host: 0.0.0.0}": r"listen\.host is 0\.0\.0\.0, open to a network",
}


@pytest.mark.parametrize(("text", "words"), WRONG.items())
def test_a_wrong_gateway_yaml_is_told_by_file_key_and_what_was_meant(text: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        read_settings(file)
    assert str(caught.value).startswith(f"{file}: ") and "\n" not in str(caught.value)


def running(folder: GatewayFolder, *, created_s: float) -> SupervisorState:
    return SupervisorState(
        gateway_id="x",
        pid=os.getpid(),
        created_s=created_s,
        url="http://127.0.0.1:1",
        sockets=folder.path / "run",
        settings=Settings(),
        trust=None,
    )


def test_a_second_start_is_refused_and_leaves_the_log_of_the_first(tmp_path: Path) -> None:
    folder = GatewayFolder(tmp_path / "state")
    folder.server("", is_first=True).claim()
    folder.prepare()
    folder.supervisor_log.write_text("of the one that runs\n")
    folder.write(running(folder, created_s=psutil.Process().create_time()))
    with pytest.raises(BusyError, match=r"a gateway runs here already, at http://127\.0\.0\.1:1"):
        run_background(folder, ["version"], timeout_s=30)
    assert folder.supervisor_log.read_text() == "of the one that runs\n"


def test_the_log_of_a_gateway_that_ended_is_kept_beside_the_new_one(tmp_path: Path) -> None:
    folder = GatewayFolder(tmp_path / "state")
    folder.server("", is_first=True).claim()
    folder.prepare()
    folder.supervisor_log.write_text("why it ended\n")
    folder.write(running(folder, created_s=0.0))  # another process has got its pid
    with pytest.raises(Exception, match=r"see .*supervisor\.log"):
        run_background(folder, ["no-such-command"], timeout_s=30)
    assert folder.supervisor_log.with_name("supervisor.log.1").read_text() == "why it ended\n"
    assert "no-such-command" in folder.supervisor_log.read_text()
