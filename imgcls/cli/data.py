"""`imgcls data`: what is wrong with the images, before they are trained on; and large sets in few files."""

import json
from pathlib import Path
from typing import Annotated

import typer

from imgcls.cli.answer import print_answer
from imgcls.cli.evaluate import Device

app = typer.Typer(help="Looks at data sets, and packs them into shards.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def data() -> None:
    """Looks at data sets, and packs them into shards."""


@app.command()
def report(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="digits, torchvision:NAME, a folder, a .zip, a .csv, a .jsonl, .tar shards."
        ),
    ],
    *,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The HTML file. [default: data-report.html]", show_default=False)
    ] = None,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="A trained run to judge labels by. [default: a small network]")
    ] = None,
    labels: Annotated[bool, typer.Option("--labels/--no-labels", help="Look for suspicious labels.")] = True,
    fail_on: Annotated[
        str, typer.Option(metavar="KINDS", help="Exit 1 where one of these is found, such as leaks,corrupt.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Of splits that are drawn, as train.py's.")] = 0,
    val_fraction: Annotated[float, typer.Option(help="As train.py's.")] = 0.15,
    test_fraction: Annotated[float, typer.Option(help="As train.py's.")] = 0.15,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, without pictures, instead of a table.")] = False,
) -> None:
    """Reports on a data set: balance, sizes, corrupt files, duplicates, leaks between splits, suspicious labels.

    Writes one self-contained HTML file with pictures. Exits 1 where something of --fail-on is found.
    """
    from rich.console import Console
    from rich.table import Table

    from imgcls.care.check import SHOWN, check_data
    from imgcls.care.findings import LOOKS, MEANING
    from imgcls.errors import DataError, UsageError
    from imgcls.files import refuse_unwritable, write_atomic
    from imgcls.report.charts import draw_bars
    from imgcls.report.render import render

    wanted = [kind.strip() for kind in fail_on.split(",") if kind.strip()]
    if unknown := [kind for kind in wanted if kind not in MEANING]:
        raise UsageError(f"--fail-on names {unknown[0]!r}; expected some of {', '.join(MEANING)}")
    found = check_data(
        source, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, run=run, labels=labels
    )
    balance = draw_bars({name: split.classes for name, split in found.splits.items()}, label="images")
    page = render("data.html.j2", {"report": found, "meanings": MEANING, "balance": balance, "shown": SHOWN})
    target = out or Path("data-report.html")
    with refuse_unwritable(target, advice="choose another file with --out"):
        write_atomic(target, page)
    counts: dict[str, int] = {kind: found.count(kind) for kind in MEANING}
    if as_json:
        fields = found.model_dump(exclude={"findings": {"__all__": {"images": {"__all__": {"image"}}}}})
        print_answer(fields | {"counts": counts, "written": str(target)}, indent=1, ensure_ascii=False)
    else:
        table = Table("finding", "what it means")
        table.add_column("found", justify="right")
        for kind, meaning in MEANING.items():
            table.add_row(kind, meaning, f"{counts[kind]:,}" if found.is_checked(kind) else "not checked")
        console = Console()
        console.width = console.width if console.is_terminal else 120
        console.print(table)
        print("\n".join((*found.notes, f"wrote {target}")))
    if "labels" in wanted and not found.labels_checked:
        raise DataError(f"labels were not checked, and --fail-on asks for them: {found.notes[-1]}")
    if unsearched := [kind for kind in LOOKS if kind in wanted and not found.looks_checked]:
        raise DataError(f"{unsearched[0]}: no image was searched, and --fail-on asks for it: {found.notes[0]}")
    if failed := [kind for kind in wanted if counts[kind]]:
        typer.echo(f"refused: {', '.join(f'{counts[kind]} {kind}' for kind in failed)}", err=True)
        raise typer.Exit(1)


@app.command()
def shard(
    source: Annotated[
        str,
        typer.Argument(
            metavar="DATA", help="digits, torchvision:NAME, a folder, a .zip, a .csv, a .jsonl, .tar shards."
        ),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    *,
    size: Annotated[str, typer.Option(metavar="SIZE", help="Of a shard, at most, such as 500MB or 2GB.")] = "500MB",
    seed: Annotated[int, typer.Option(help="Of the order, and of splits that are drawn, as train.py's.")] = 0,
    val_fraction: Annotated[float, typer.Option(help="As train.py's.")] = 0.15,
    test_fraction: Annotated[float, typer.Option(help="As train.py's.")] = 0.15,
    strict: Annotated[
        bool, typer.Option("--strict", help="Decode each file too, and write nothing where one cannot be used.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Writes a data set as tar shards in the WebDataset convention, so that a large one has few files.

    Images keep their bytes, names, labels and splits; splits that the data lacks are drawn as train.py draws them.
    """
    from imgcls.data.images import count_files
    from imgcls.data.shard_writer import parse_size, write_shards
    from imgcls.data.sources import open_source
    from imgcls.errors import DataError

    size_bytes = parse_size(size)
    opened = open_source(source, seed=seed, val_fraction=val_fraction, test_fraction=test_fraction, plain=True)
    try:
        written = write_shards(opened, out, size_bytes=size_bytes, seed=seed, strict=strict)
    except OSError as err:
        raise DataError(f"{out}: cannot be written: {err}; choose another folder") from err
    for problem in written.problems:
        typer.echo(f"left out: {problem}", err=True)
    if as_json:
        fields = {"folder": str(out), "shards": written.shards, "images": written.images}
        print(json.dumps(fields | {"left_out": count_files(written.problems)}, indent=1))
    else:
        total, shards = sum(written.images.values()), sum(written.shards.values())
        each = ", ".join(f"{name} {count:,}" for name, count in written.images.items())
        print(f"wrote {total:,} images ({each}) in {shards:,} shards; next: python train.py --data {out}")


@app.command()
def screen(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory, whose training images are screened.")],
    *,
    source: Annotated[
        str | None,
        typer.Option("--data", metavar="DATA", help="Where the training images are. [default: as the run says]"),
    ] = None,
    share: Annotated[
        float, typer.Option(help="Part of a class that may be planted; 1.5 times as many are named.")
    ] = 0.05,
    device: Annotated[Device, typer.Option(help="Where the network runs.")] = Device.AUTO,
    strict: Annotated[bool, typer.Option("--strict", help="Exit 1 where a class is suspect, or not judged.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Screens a run's training images for planted ones: spectral signatures and activation clusters, class by class.

    Writes poison.csv into the run: the images that are named, with score and reason.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from imgcls.care.features import read_features
    from imgcls.care.poison import FEWEST, POISON_FILE, format_named, screen_features
    from imgcls.errors import UsageError
    from imgcls.files import refuse_unwritable, write_atomic

    if not 0 < share < 0.5:
        raise UsageError(f"--share is {share:g}; expected above 0 and below 0.5, as planted images are not the most")
    found = screen_features(read_features(run, data=source, device=device.value), share=share)
    with refuse_unwritable(run / POISON_FILE, advice="make room or mend permissions"):
        write_atomic(run / POISON_FILE, format_named(found))
    if as_json:
        print(found.model_dump_json(indent=1))
    else:
        table = Table("class")
        for column in ("images", "silhouette", "small cluster", "neighbours", "named"):
            table.add_column(column, justify="right")
        table.add_column("verdict")
        for each in found.classes:
            numbers = ("", "", "", "", "not judged: too few images, or features that are not finite")
            if each.silhouette is not None and each.cluster_share is not None:
                verdict = "suspect" if each.is_suspect else "nothing found"
                cluster = f"{each.silhouette:.2f}", f"{each.cluster_share:.0%}"
                neighbours = "" if each.neighbours is None else f"{each.neighbours:.2f}"
                numbers = (*cluster, neighbours, f"{len(each.named):,}", verdict)
            table.add_row(escape(each.label), f"{each.images:,}", *numbers)
        console = Console()
        console.width = console.width if console.is_terminal else 120
        console.print(table)
        print(f"wrote {run / POISON_FILE}; look at the images that it names before you believe it")
    if found.suspects:
        names = ", ".join(each.label for each in found.suspects[:10])
        typer.echo(f"{'refused: ' if strict else ''}{len(found.suspects)} classes are suspect: {names}", err=True)
    if strict and found.unjudged:
        names = ", ".join(each.label for each in found.unjudged[:10])
        wanted = f"expected {FEWEST} images of each or more, and finite features; leave --strict off to go without"
        typer.echo(f"refused: {len(found.unjudged)} classes were not judged: {names}; {wanted}", err=True)
    if strict and (found.suspects or found.unjudged):
        raise typer.Exit(1)
