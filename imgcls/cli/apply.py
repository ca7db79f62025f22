"""`imgcls apply`: brings a gateway to what a file wishes for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls.cli.state import STATE, StateOption
from imgcls.cli.timeout import timeout_option
from imgcls.errors import UsageError

if TYPE_CHECKING:
    from imgcls.desired.applying import Difference


def apply(
    desired: Annotated[Path | None, typer.Argument(help="The wish, such as desired.yaml.", show_default=False)] = None,
    *,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the difference, and change nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before it is made.")] = False,
    export: Annotated[bool, typer.Option("--export", help="Print what the gateway has as such a file.")] = False,
    timeout_s: Annotated[float, timeout_option("Seconds for each version to be READY.")] = 180,
    state: StateOption = STATE,
) -> None:
    """Brings the models, versions, workers and weights of a gateway to what a file says.

    Shows the difference, then makes it in an order that loses no request: load beside, move requests, drain, unload.
    Where a version cannot be loaded, nothing is changed. Doing it again does no harm.
    """
    from imgcls.desired.applying import Applier
    from imgcls.gateway.folder import GatewayFolder

    folder = GatewayFolder(state)
    if export:
        from imgcls.desired.file import write_desired
        from imgcls.gateway.errors import NoGatewayError

        table = folder.table.read()
        if not table.models:
            raise NoGatewayError(
                f"no gateway was served with the state folder {folder.state}; name another with --state"
            )
        print(write_desired(table, folder.store), end="")
        return
    if desired is None:
        raise UsageError("no file is named; write one, for instance from imgcls apply --export")
    applier = Applier(folder, timeout_s=timeout_s, on_progress=_tell)
    if dry_run:
        _show(applier.compare(desired, copies=False), as_json=as_json, is_made=False)
        return
    with applier.alone():
        difference = applier.compare(desired, copies=True)
        if difference.changes:
            _ask(difference, yes=yes)
            applier.make(difference)
        _show(difference, as_json=as_json, is_made=True)


def _ask(difference: Difference, *, yes: bool) -> None:
    """Shows what will be done, and asks where somebody is there to answer."""
    print(_as_text(difference), file=sys.stderr, flush=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("nobody is there to say yes; add --yes, or --dry-run to change nothing")
    typer.confirm("make it?", abort=True, err=True)


def _show(difference: Difference, *, as_json: bool, is_made: bool) -> None:
    if as_json:
        changes = [change.as_dict() for change in difference.changes]
        print(json.dumps({"changes": changes, "made": is_made and bool(changes)}, indent=2))
    elif not difference.changes:
        print("nothing to do")
    elif is_made:
        print(f"made {len(difference.changes)} changes")
    else:
        print(_as_text(difference))


def _as_text(difference: Difference) -> str:
    rows = [("what", "from", "to"), *((each.what, each.before, each.after) for each in difference.changes)]
    widths = [max(len(row[column]) for row in rows) for column in range(2)]
    return "\n".join(f"{what:{widths[0]}}  {before:{widths[1]}}  {after}" for what, before, after in rows)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
