import json
import os
import socket
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from imgcls.archive.contents import read_contents
from imgcls.gateway.member import Member
from imgcls.gateway.store import Store
from imgcls.gateway.table import Version
from imgcls.serving import doctor
from imgcls.serving.errors import JavaError, PreflightError
from imgcls.serving.java import find_java
from imgcls.serving.ports import Ports, ports_from
from imgcls.serving.state import ServerState, StateFolder

Usage = namedtuple("Usage", "total used free")


def make_java(folder: Path, *, version: str) -> Path:
    java = folder / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text(f"#!/bin/sh\necho '{version}' >&2\n")
    java.chmod(0o755)
    return java


def test_java_comes_from_the_choice_or_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = make_java(tmp_path / "home", version='openjdk version "21.0.1" 2023')
    assert find_java(str(tmp_path / "home")) == java
    monkeypatch.setenv("IMGCLS_JAVA", str(tmp_path / "home"))
    assert find_java() == java
    monkeypatch.setenv("IMGCLS_JAVA", str(tmp_path))
    with pytest.raises(JavaError, match="is no executable"):
        find_java()


def test_system_java_is_used_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    java = make_java(tmp_path, version='openjdk version "17.0.9"')
    monkeypatch.delenv("IMGCLS_JAVA", raising=False)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    assert find_java("system") == java
    monkeypatch.delenv("JAVA_HOME")
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(JavaError, match="no java on PATH"):
        find_java("system")


@pytest.mark.parametrize(("said", "expected"), [('version "1.8.0_392"', "is Java 8"), ("hello", "tells no version")])
def test_unusable_java_is_refused(tmp_path: Path, said: str, expected: str) -> None:
    make_java(tmp_path, version=said)
    with pytest.raises(JavaError, match=expected):
        find_java(str(tmp_path))
    (finding,) = doctor.check_java(str(tmp_path))
    assert finding.status == "error" and expected in finding.detail
    assert finding.fix and finding.fix not in finding.detail


def test_package_that_cannot_be_imported_is_named_with_its_fix() -> None:
    (finding,) = doctor.check_packages(Path(sys.executable), names={"json": "json", "no_such_module": "it"})
    assert (finding.status, finding.name, finding.fix) == ("error", "package it", "pip install 'it'")
    (finding,) = doctor.check_packages(Path("/nowhere/python"), names={"json": "json"})
    assert finding.status == "error"


def test_a_worker_that_decodes_on_the_card_needs_one_package_more() -> None:
    assert doctor.list_packages({}) == doctor.list_packages({"handler": {"decode": "cpu"}}) == doctor.PACKAGES
    more = doctor.list_packages({"handler": {"decode": "gpu"}})
    assert more.keys() - doctor.PACKAGES.keys() == {"nvidia.nvimgcodec"}


def test_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        ports = Ports(inference=port, management=1, metrics=1, grpc_inference=1, grpc_management=1)
        findings = doctor.check_ports(ports)
    assert any(f"port {port} (inference) is in use by pid" in finding.detail for finding in findings)


def test_ports_of_one_holder_are_one_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = Ports(inference=1, management=2, metrics=3, grpc_inference=4, grpc_management=5)
    monkeypatch.setattr(doctor, "is_free", lambda port: port == 5)
    monkeypatch.setattr(doctor, "find_holder", lambda port: "another process" if port == 4 else "pid 7 (java)")
    (finding,) = doctor.check_ports(ports)
    assert finding.detail == (
        "port 1 (inference), port 2 (management), port 3 (metrics) are in use by pid 7 (java); "
        "port 4 (grpc_inference) is in use by another process"
    )


def test_golden_input_that_is_larger_than_a_request_may_be_is_warned_of(archive: Path) -> None:
    (finding,) = doctor.check_request_size({"max_request_size": "10"}, archive)
    assert finding.status == "warning" and "golden input 0.png" in finding.detail and "max_request_size" in finding.fix
    assert [finding.status for finding in doctor.check_request_size({}, archive)] == ["ok"]
    for text in ("x", "²"):
        found = doctor.check_request_size({"max_request_size": text}, archive)
        assert [finding.status for finding in found] == ["error"]


def test_state_folder_of_someone_else_is_seen(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    (finding,), runs = doctor.check_state(StateFolder(tmp_path))
    assert (finding.status, runs) == ("error", False) and "will refuse it" in finding.detail


def test_missing_and_empty_model_stores_are_told_apart(tmp_path: Path) -> None:
    (finding,) = doctor.check_archive(tmp_path / "none" / "imgcls.mar")
    assert "is missing" in finding.detail and "build_mar" in finding.fix
    (finding,) = doctor.check_archive(tmp_path / "imgcls.mar")
    assert "is empty" in finding.detail
    (tmp_path / "imgcls.mar").write_bytes(b"PK junk")
    (finding,) = doctor.check_archive(tmp_path / "imgcls.mar")
    assert finding.status == "error" and "cannot be read" in finding.detail


def test_gpu_is_missed_only_where_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [finding.status for finding in doctor.check_gpus({}, {})] == ["ok"]
    assert [finding.status for finding in doctor.check_gpus({"number_of_gpu": "0"}, {})] == ["ok"]
    assert [finding.status for finding in doctor.check_gpus({"number_of_gpu": "1"}, {})] == ["error"]
    assert [finding.status for finding in doctor.check_gpus({}, {"deviceType": "gpu"})] == ["error"]


@pytest.mark.parametrize(("free", "status"), [(10, "error"), (100_000_000, "warning"), (10**10, "ok")])
def test_full_disk_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, status: str) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(free, 0, free))
    assert [finding.status for finding in doctor.check_disk([tmp_path / "not" / "there"])] == [status]


@pytest.mark.parametrize(("unpacked", "is_room"), [(900_000_000, True), (1_000_000_000, False)])
def test_archive_that_cannot_be_unpacked_is_seen_before_torchserve_refuses_it(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch, unpacked: int, is_room: bool
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage(0, 0, 1_000_000_000))
    contents = replace(read_contents(archive), sizes={"weights.safetensors": unpacked})
    found = doctor.check_unpacking(StateFolder(tmp_path / "state"), contents)
    assert [finding.status for finding in found] == ([] if is_room else ["error"])
    assert is_room or "1,000 MB free, and the archive takes 1,000 MB unpacked" in found[0].detail


def test_version_that_cannot_be_unpacked_is_not_loaded_beside_another(
    tmp_path: Path, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, temporary = StateFolder(tmp_path / "state"), tmp_path / "tmp"
    folder.prepare()
    fields = {"server_id": "x", "pid": os.getpid(), "created_s": psutil.Process().create_time(), "model": "colors"}
    nobody = {"inference_url": "http://127.0.0.1:9", "management_url": "http://127.0.0.1:9", "token_required": False}
    other = {"ports": ports_from(9000), "archive": archive, "version": "1", "temporary": temporary}
    folder.write(ServerState(**fields, **nobody, **other))
    asked: list[Path] = []
    monkeypatch.setattr("shutil.disk_usage", lambda path: asked.append(path) or Usage(0, 0, 10_000_000))
    monkeypatch.setattr(Member, "versions", lambda *_: {})
    member = Member("main", folder, Store(archive.parent))
    row = Version(version="2", archive=archive.name, tree_sha256="0", workers=1, weight=0)
    with pytest.raises(PreflightError, match=r"10 MB free, and the archive takes .* MB unpacked: make room"):
        member.load("colors", row, timeout_s=1)
    assert asked == [tmp_path]  # of its temporary folder, which is not there yet
    with pytest.raises(PreflightError, match=r"gone\.mar: there is no such archive"):
        member.load("colors", row.model_copy(update={"archive": "gone.mar"}), timeout_s=1)


def test_overriding_variables_are_warned_of() -> None:
    findings = doctor.check_environment({"TS_METRICS_MODE": "log", "JAVA_TOOL_OPTIONS": "-Xmx1m", "JAVA_HOME": "/j"})
    assert [finding.status for finding in findings] == ["warning", "warning", "ok"]
    assert [finding.status for finding in doctor.check_environment({})] == ["ok"]


def test_every_finding_that_is_not_ok_has_a_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", {"json": "json"})
    monkeypatch.setenv("TS_X", "1")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state.json").write_text("broken")
    subject = doctor.Subject(
        archive=tmp_path / "x.mar", config=tmp_path / "none", state=tmp_path / "state", port=70000, java=str(tmp_path)
    )
    findings = doctor.examine(subject)
    wrong = [finding for finding in findings if finding.status != "ok"]
    assert {"configuration", "java", "archive", "state", "ports", "environment"} <= {finding.name for finding in wrong}
    assert all(finding.fix for finding in wrong), wrong
    assert json.dumps([finding.__dict__ for finding in findings])
