import json
from collections.abc import Callable
from pathlib import Path

from handler.integrity import INTEGRITY_FILE
from imgcls.archive.contents import open_archive
from imgcls.serving.state import ServerState


def test_provenance_of_what_is_served_is_one_command(
    server: ServerState, archive: Path, cli: Callable, state_flag: list[str]
) -> None:
    with open_archive(archive) as file:
        recorded = json.loads(file.read(INTEGRITY_FILE))["tree_sha256"]
    result = cli(["provenance", *state_flag])
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"imgcls 1.0   {archive}\nserved     at {server.management_url}, ")
    assert f"\ncontent    {recorded}\n" in result.stdout
    fields = json.loads(cli(["provenance", "--json", *state_flag]).stdout)
    assert fields["served"]["tree_sha256"] == fields["tree_sha256"] == recorded


def test_provenance_of_a_version_that_is_not_served_is_refused(
    server: ServerState, cli: Callable, state_flag: list[str]
) -> None:
    result = cli(["provenance", "--version", "9.9", *state_flag])
    assert result.returncode == 1
    assert "Model version: 9.9 does not exist" in result.stderr
