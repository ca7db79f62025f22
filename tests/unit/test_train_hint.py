import shlex
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["run", "my run", "it's; $HOME"])
def test_commands_that_a_run_ends_with_can_be_pasted(
    tmp_path: Path, train_photos: Callable[..., int], capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert train_photos(tmp_path / name) == 0
    last = capsys.readouterr().err.splitlines()[-1]
    commands = last.partition("; next: ")[2].split(", then ")
    assert [shlex.split(command) for command in commands] == [
        ["imgcls", "evaluate", str(tmp_path / name)],
        ["./build_mar.sh", str(tmp_path / name)],
    ]
