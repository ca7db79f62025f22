"""`imgcls archive build`: from a run directory to an archive in the model store."""

import json
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from imgcls.errors import ArchiveError, UsageError
from imgcls.gate.verdict import GateReport
from model.engines.records import EngineRecord

STORE = Path("model_store")


def build(
    run: Annotated[Path, typer.Argument(help="Run directory that train.py wrote.")],
    *,
    name: Annotated[str, typer.Option(help="Model name; the archive is NAME.mar.")] = "imgcls",
    version: Annotated[str, typer.Option(help="Model version, part of the inference URL.")] = "1.0",
    store: Annotated[Path, typer.Option(help="Folder to write the archive into.")] = STORE,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Workers to start; default: TorchServe's, one a core or one a GPU.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most requests in one batch.")] = 8,
    max_batch_delay_ms: Annotated[
        int, typer.Option(min=1, help="Wait for a batch to fill; a lone request waits too. TorchServe takes 0 for 100.")
    ] = 1,
    license_name: Annotated[
        str | None, typer.Option("--license", help="Licence of the weights, as an SPDX identifier such as Apache-2.0.")
    ] = None,
    engines: Annotated[
        str, typer.Option(help="Engines to build beside eager, separated by commas: auto, openvino-int8, …")
    ] = "eager",
    engine: Annotated[str, typer.Option(help="Engine that a worker takes: auto, or a name.")] = "auto",
    decode: Annotated[Literal["cpu", "gpu"], typer.Option(help="Where workers on a GPU decode JPEGs.")] = "cpu",
    waive: Annotated[
        list[str] | None, typer.Option(help="A finding of the scan that shall not stop the build: RULE or RULE:PATH.")
    ] = None,
    gate: Annotated[
        Path | None,
        typer.Option(metavar="TOML", help="A policy that the run must pass, as imgcls gate judges it."),
    ] = None,
    gate_against: Annotated[
        Path | None, typer.Option(metavar="BASELINE", help="The run that the policy compares with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Builds STORE/NAME.mar from a run: the same run, code and packages give the same bytes.

    It is scanned, and answers its golden inputs as TorchServe would ask them, before it is put in place.
    SOURCE_DATE_EPOCH, where set, is the time that it carries. With --gate the verdict goes into it, as gate.json.
    """
    from imgcls.archive.torch_process import TorchProcess, list_imports

    if gate_against and not gate:
        raise UsageError("--gate-against names a baseline, and no --gate a policy; give both")
    verdict = _judge(run, gate, against=gate_against) if gate else None
    with TorchProcess(list_imports(run)) as process:  # it imports torch while this process imports the rest
        from imgcls.archive.build import build_archive
        from imgcls.archive.stage import ServingOptions
        from imgcls.archive.verify import read_integrity
        from imgcls.cli.progress import show_bytes

        options = ServingOptions(
            workers=workers,
            batch_size=batch_size,
            max_batch_delay_ms=max_batch_delay_ms,
            engine=engine,
            decode=decode,
            license=license_name,
        )
        with show_bytes("packing", total=_size_of(run)) as on_bytes:
            archive = build_archive(
                run,
                store,
                name=name,
                version=version,
                options=options,
                engines=engines.split(","),
                waived=tuple(waive or ()),
                gate=verdict,
                process=process,
                on_bytes=on_bytes,
                on_engines=report_engines,
            )
    size_bytes, tree_sha256 = archive.stat().st_size, read_integrity(archive).tree_sha256
    if as_json:
        fields = {"archive": str(archive.absolute()), "name": name, "version": version, "size_bytes": size_bytes}
        print(json.dumps(fields | {"tree_sha256": tree_sha256}, indent=2))
        return
    print(f"built {archive.absolute()} ({size_bytes:,} bytes): {name} {version}, golden inputs answered right")
    print(f"tree sha256 {tree_sha256}")


def _judge(run: Path, policy: Path, *, against: Path | None) -> GateReport:
    """Judges the run by a policy, and prints the table to stderr.

    Raises:
        ArchiveError: the run is refused.
    """
    from rich.console import Console

    from imgcls.cli.gate import build_table, describe
    from imgcls.gate.judge import judge_run
    from imgcls.gate.policy import read_policy

    rules, sha256 = read_policy(policy)
    report = judge_run(run, rules, policy_sha256=sha256, baseline=against)
    console = Console(stderr=True)
    console.width = console.width if console.is_terminal else 140
    console.print(build_table(report, title=f"gate {policy}"))
    if not report.is_passed:
        raise ArchiveError(f"{run}: {policy} refuses it, {describe(report)}; nothing was built")
    return report


def report_engines(records: list[EngineRecord]) -> None:
    """Says on stderr what became of the engines that were asked for; which are refused must not go unseen."""
    for record in records:
        if not record.is_accepted:
            print(f"warning: engine {record.engine} is left out: {record.reason}", file=sys.stderr)
        elif record.comparison:
            print(f"engine {record.engine}: {record.reason}", file=sys.stderr)


def _size_of(run: Path) -> int:
    weights = run / "weights.safetensors"
    return weights.stat().st_size if weights.is_file() else 0
