"""`imgcls rollout`: brings a new version to all requests step by step, and back."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imgcls.cli.rollout_view import shown
from imgcls.cli.state import STATE, StateOption
from imgcls.errors import UsageError

if TYPE_CHECKING:
    from imgcls.rollout.progress import OnChange
    from imgcls.rollout.rollouts import Rollouts
    from imgcls.rollout.state import RolloutFiles, RolloutState

app = typer.Typer(help="Brings a new version to all requests step by step, and back.", no_args_is_help=True)

PlanOption = Annotated[
    Path | None, typer.Option("--plan", help="A plan in TOML or YAML. [default: the built-in plan]", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NameOption = Annotated[str | None, typer.Option("--name", help="The model, where several are served.")]


@app.command()
def plan(file: PlanOption = None) -> None:
    """Prints a plan with all its keys, to be checked or changed."""
    from imgcls.rollout.plan import Plan, read_plan

    print((Plan() if file is None else read_plan(file)).as_toml(), end="")


@app.command()
def start(
    archive: Annotated[
        Path | None, typer.Argument(help="The new version's .mar file; none continues what was interrupted.")
    ] = None,
    *,
    plan_file: PlanOption = None,
    as_json: JsonOption = False,
    state: StateOption = STATE,
) -> None:
    """Rolls a new version, or continues a rollout that was interrupted.

    Stays until the version is promoted and the old one retired, or everything is back. Ctrl-C leaves requests as they
    are shared then. Exits 1 when it was rolled back.
    """
    from imgcls.rollout.plan import read_plan

    if archive is None and plan_file is not None:
        raise UsageError("--plan is of a new rollout, and no archive is named; one that is continued keeps its plan")
    chosen = None if plan_file is None else read_plan(plan_file)
    rollouts = _open(state)
    with _shown(rollouts) as on_change:
        ended = rollouts.start(archive, chosen, on_change=on_change)
    _end(ended, as_json=as_json)


@app.command()
def status(*, as_json: JsonOption = False, state: StateOption = STATE) -> None:
    """Shows the rollout that is under way, or the last one.

    Exits 1 when one is unfinished and no process runs it.
    """
    from imgcls.rollout.rollouts import is_run as is_run_now

    files = _files(state)
    last = files.read()
    if last is None:
        print("null" if as_json else "no rollout yet; begin one with imgcls rollout start ARCHIVE")
        return
    is_run = is_run_now(files)
    print(_as_json(last, is_run=is_run) if as_json else _as_text(last, is_run=is_run))
    if not last.is_finished and not is_run:
        raise typer.Exit(1)


@app.command()
def pause(*, state: StateOption = STATE) -> None:
    """Keeps the shares of requests as they are until promote or abort."""
    _open(state).ask("pause")
    print("asked to pause; go on with imgcls rollout promote, or imgcls rollout abort")


@app.command()
def promote(
    *,
    full: Annotated[bool, typer.Option("--full", help="Skip every further trial on requests.")] = False,
    state: StateOption = STATE,
) -> None:
    """Ends a pause, or the hold of the present step, whatever its verdict."""
    _open(state).ask("promote-full" if full else "promote")
    print("asked to go on")


@app.command()
def abort(*, as_json: JsonOption = False, state: StateOption = STATE) -> None:
    """Gives every request back to the stable version, and takes the new one away."""
    rollouts = _open(state)
    with _shown(rollouts) as on_change:
        ended = rollouts.abort(on_change=on_change)
    _end(ended, as_json=as_json, wanted="rolled-back")


@app.command()
def undo(
    version: Annotated[str | None, typer.Argument(help="A version of the history. [default: the one before]")] = None,
    *,
    name: NameOption = None,
    as_json: JsonOption = False,
    state: StateOption = STATE,
) -> None:
    """Goes back to an earlier version at once, without trials on requests."""
    rollouts = _open(state)
    with _shown(rollouts) as on_change:
        ended = rollouts.undo(version, model=name, on_change=on_change)
    _end(ended, as_json=as_json, wanted="promoted" if ended.is_undo else "rolled-back")


@app.command()
def history(*, as_json: JsonOption = False, state: StateOption = STATE) -> None:
    """Lists the versions that got all requests, oldest first."""
    entries = _files(state).history()
    if as_json:
        print(json.dumps(entries, indent=2))
        return
    if not entries:
        print("no version was rolled yet")
    for entry in entries:
        release, before = entry["release"], entry["before"]
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(str(entry["time_s"]))))
        assert isinstance(release, dict) and isinstance(before, dict)
        print(
            f"{at}  {entry['model']} {before['version']} to {release['version']}  {release['tree_sha256'][:12]}  "
            f"{entry['operator']}{'  undo' if entry['is_undo'] else ''}"
        )


@app.command()
def audit(*, state: StateOption = STATE) -> None:
    """Prints the audit log: who did what, when, and on which numbers; one JSON object a line."""
    files = _files(state)
    for entry in files.read_lines(files.audit_file):
        print(json.dumps(entry))


@app.command()
def label(
    file: Annotated[Path, typer.Argument(help="JSON lines or CSV with request_id and label.")],
    *,
    state: StateOption = STATE,
) -> None:
    """Hands in what requests really showed, for the accuracy of both versions."""
    from imgcls.rollout.labels import append_labels, find_strange, read_labels

    labels = read_labels(file)
    rollouts = _open(state)
    strange = find_strange(labels, rollouts.classes(), where=file)
    append_labels(rollouts.files.labels_file, labels)
    print(f"{len(labels)} labels taken")
    if strange:
        names = set(strange)
        count = sum(label in names for label in labels.values())
        print(
            f"warning: {count} of them, such as {strange[0]!r}, are no class of a version that is served; every answer "
            "to their requests counts as wrong",
            file=sys.stderr,
        )


@app.command()
def prune(
    *,
    keep: Annotated[int, typer.Option(min=0, help="Newest entries of the history that can still be undone.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
    state: StateOption = STATE,
) -> None:
    """Removes archives from the gateway's store that nothing will ask for again."""
    from imgcls.rollout.prune import remove

    paths, removed = _open(state).prune(keep=keep, remove=(lambda _: 0) if dry_run else remove)
    for path in paths:
        print(f"{'would remove' if dry_run else 'removed'} {path}")
    print(f"{len(paths)} archives{'' if dry_run else f', {removed / 1e6:,.1f} MB freed'}")


def _files(state: Path) -> RolloutFiles:
    """Returns what can be read without a gateway that runs."""
    from imgcls.gateway.folder import GatewayFolder
    from imgcls.rollout.rollouts import read_files

    return read_files(GatewayFolder(state))


def _open(state: Path) -> Rollouts:
    from imgcls.gateway.folder import GatewayFolder
    from imgcls.rollout.rollouts import Rollouts

    return Rollouts(GatewayFolder(state))


@contextmanager
def _shown(rollouts: Rollouts) -> Iterator[OnChange]:
    """Shows a rollout while it runs, and says on Ctrl-C or SIGTERM where it was left."""
    try:
        with shown(rollouts.gateway) as on_change:
            yield on_change
    except (KeyboardInterrupt, SystemExit):
        last = rollouts.files.read()
        if last is not None and not last.is_finished:
            print(
                f"left as it is, {last.status}; continue with imgcls rollout start, or go back with imgcls rollout "
                "abort",
                file=sys.stderr,
            )
        raise


def _end(state: RolloutState, *, as_json: bool, wanted: str = "promoted") -> None:
    print(_as_json(state, is_run=False) if as_json else _as_text(state, is_run=False))
    if state.status != wanted:
        raise typer.Exit(1)


def _as_json(state: RolloutState, *, is_run: bool) -> str:
    fields = state.model_dump(mode="json", exclude={"plan"})
    return json.dumps({**fields, "is_run": is_run}, indent=2)


def _as_text(state: RolloutState, *, is_run: bool) -> str:
    candidate = state.candidate.version if state.candidate else "?"
    reason = f": {state.reason}" if state.reason else ""
    lines = [f"{state.model} {state.stable.version} to {candidate}: {state.status}{reason}"]
    for step in state.steps:
        is_said = step.reason in ("", state.reason)
        lines.append(f"  {step.status:8} {step.name}{'' if is_said else f'  {step.reason}'}")
    if not state.is_finished and not is_run:
        lines.append("no process runs it: continue with imgcls rollout start, or go back with imgcls rollout abort")
    return "\n".join(lines)
