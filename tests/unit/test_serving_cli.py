import inspect
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from imgcls.cli import doctor, predict, serving
from imgcls.errors import UsageError
from imgcls.serving.capacity import refuse_workers
from imgcls.serving.ports import ports_from
from imgcls.serving.state import ServerState, StateFolder

COMMANDS = (
    serving.serve,
    serving.status,
    serving.scale,
    serving.stop,
    predict.predict,
    doctor.doctor,
)


@pytest.mark.parametrize("command", COMMANDS)
def test_first_line_of_help_is_short_and_in_the_third_person(command: object) -> None:
    first, _, rest = (inspect.getdoc(command) or "").partition("\n")
    assert len(first) < 60 and first.split()[0].endswith("s") and not rest.strip("\n").startswith(first)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("serve", "no.mar", "--workers", "14"), "--workers is 14; expected at most 13"),
        (("scale", "2000"), "the number of workers is 2000; expected at most 13"),
        (("scale", "--auto", "--max", "14"), "--max is 14; expected at most 13"),
    ],
)
def test_workers_that_no_memory_could_hold_are_refused(
    tmp_path: Path, command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, arguments, words: str
) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=2_000_000_000))
    status, _, err = command(*arguments, "--state", tmp_path / "state")
    assert status == 2 and words in err and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", [("serve", "no.mar"), ("scale", "2"), ("apply", "no.yaml"), ("predict", "no.png")]
)
@pytest.mark.parametrize("seconds", ["nan", "inf", "1e308", "-1", "soon"])
def test_timeout_that_is_none_is_one_line(
    command: Callable[..., tuple[int, str, str]], arguments: tuple[str, ...], seconds: str
) -> None:
    status, _, err = command(*arguments, "--timeout", seconds)
    assert status == 2 and err.count("\n") == 1
    assert err.startswith(f"error: --timeout is {seconds}; expected seconds from ") and " to 1000000, such as" in err


def test_memory_is_a_containers_where_it_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory.max").write_text("300000000\n")
    monkeypatch.setattr("imgcls.memory.CGROUP", tmp_path)
    refuse_workers(2, what="--workers")
    with pytest.raises(UsageError, match="expected at most 2"):
        refuse_workers(3, what="--workers")


def test_printed_commands_quote_a_path_with_spaces_and_quotes(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path / """it's "a" $HOME""")
    folder.prepare()
    folder.key_file.write_text(json.dumps({"inference": {"key": "secret"}}))
    server = ServerState(
        server_id="x",
        pid=1,
        created_s=0,
        ports=ports_from(9000),
        inference_url="http://127.0.0.1:9000",
        management_url="http://127.0.0.1:9001",
        token_required=True,
        archive=Path("a.mar"),
        model="imgcls",
        version="1.0",
        temporary=tmp_path,
    )
    lines = serving._describe_start(server, folder, is_foreground=False).splitlines()

    def arguments_of(command: str) -> list[str]:
        script = f"imgcls() {{ printf '%s\\n' \"$@\"; }}; curl() {{ printf '%s\\n' \"$@\"; }}; {command}"
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()

    assert arguments_of(lines[1].removeprefix("predict  ")) == ["predict", "--state", str(folder.path), "FILE"]
    assert arguments_of(lines[2].strip())[:2] == ["-H", "Authorization: Bearer secret"]
    assert arguments_of(lines[4].removeprefix("stop     ")) == ["stop", "--state", str(folder.path)]
