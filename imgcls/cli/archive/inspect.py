"""`imgcls archive inspect`: what an archive is, on one screen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imgcls.cli.archive.verify import CONFIG

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from imgcls.archive.describe import Description
    from model.engines.records import Comparison

ARCHIVE = Path("model_store/imgcls.mar")
WIDTH = 100  # of a pipe, which has none
MAX_NAME = 40  # characters of a model's name and version, which would else push the rest off the screen
MOST_ENGINES, MOST_SETS = 6, 4
MOST_CLASSES = 160  # characters
SCORES = {"samples": "images", "accuracy": "accuracy", "loss": "loss", "f1_macro": "F1 macro"}


def inspect(
    archive: Annotated[Path, typer.Argument(help="The .mar file; one that imgcls has not built is described too.")] = (
        ARCHIVE
    ),
    *,
    trust: Annotated[
        Path | None,
        typer.Option(
            help="A trust file, against which the signatures are checked. "
            "[default: as for imgcls serve, $IMGCLS_TRUST, else ./trust.yaml, else none]",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: everything, all files and classes too.")] = False,
) -> None:
    """Shows what an archive is, whether it is as it was packed and who says to have signed it, on one screen.

    Needs no torch and runs nothing of the archive. Exits 1 when an archive of imgcls is not as it was packed, or is not
    signed as the trust file demands.
    """
    from dataclasses import asdict

    from rich.console import Console

    from imgcls.archive.describe import describe_archive
    from imgcls.archive.trust import find_trust_file, load_trust
    from imgcls.cli.progress import show_bytes

    file = trust or find_trust_file(None, config=CONFIG)
    policy = load_trust(file) if file else None
    with show_bytes("reading", total=2 * archive.stat().st_size if archive.is_file() else 0) as on_bytes:
        description = describe_archive(archive, trust=policy, trust_file=file, on_bytes=on_bytes)
    if as_json:
        print(json.dumps(asdict(description), indent=2))
    else:
        print_screen(_build_screen_of(archive, description), console=Console(highlight=False))
    is_demanded = policy is not None and policy.policy != "off"
    if description.proof.problem and (description.is_imgcls or is_demanded):
        raise typer.Exit(1)


def _build_screen_of(archive: Path, description: Description) -> Table:
    """Builds the screen of what an archive says of itself, whose sections and numbers may be something else.

    Raises:
        ArchiveError: they are.
    """
    from imgcls.errors import ArchiveError

    try:
        return build_screen(description)
    except (ValueError, LookupError, TypeError, AttributeError) as err:
        told = f"what it says of itself is not what imgcls writes ({' '.join(str(err).split())})"
        proof = description.proof
        verified = "it is as it was packed" if proof.verified else f"not verified: {proof.problem}"
        raise ArchiveError(f"{archive}: {told}; {verified}; --json shows all of it as it is") from err


def print_screen(screen: Table, *, console: Console) -> None:
    """Prints to a terminal as wide as that is; to a pipe in WIDTH characters, without blanks at the ends of lines."""
    if console.is_terminal:
        console.print(screen)
        return
    console.width = WIDTH
    with console.capture() as captured:
        console.print(screen)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def build_screen(description: Description) -> Table:
    """Returns the screen: a name for each line, and what there is to say."""
    from rich.table import Table
    from rich.text import Text

    from imgcls.archive.scanning.findings import make_printable

    screen = Table.grid(padding=(0, 2))
    screen.add_column(style="bold", no_wrap=True, max_width=MAX_NAME)
    screen.add_column(overflow="fold")
    screen.add_row(Text(make_printable(f"{description.name} {description.version}")), Text(description.path))
    for name, text, style in _list_lines(description):
        screen.add_row(name, Text(make_printable(text), style=style))
    return screen


def _list_lines(description: Description) -> Iterator[tuple[str, str, str]]:
    """Yields what each line is called, says and looks like."""
    yield from (_describe_model(description) if description.is_imgcls else _describe_foreign(description))
    yield "settings", _join(_flatten(description.model_config)) or "none: TorchServe's defaults", ""
    if description.is_imgcls:
        yield "trained", _describe_training(description), ""
        yield "data", _describe_data(description), ""
    yield from _describe_proof(description)
    rooms = [f"{room} {size:,}" for room, size in description.rooms.items() if size]
    yield "size", f"{description.size_bytes:,} bytes: {', '.join(rooms)}", ""
    largest = [f"{path} {size:,}" for path, size in list(description.sizes.items())[:5]]
    more = len(description.sizes) - len(largest)
    yield "files", ", ".join(largest) + (f" and {more} smaller ones" if more > 0 else ""), ""


def _describe_model(description: Description) -> Iterator[tuple[str, str, str]]:
    if description.missing:
        yield "missing", f"it holds no {', '.join(description.missing)}", "bold red"
    if description.network:
        yield "network", _describe_network(description), ""
    yield "input", description.input or "not told", ""
    yield "classes", _describe_classes(description), ""
    engines = [_describe_engine(engine) for engine in description.engines]
    yield from _with_name("engines", engines, most=MOST_ENGINES)
    if not description.test_sets:
        yield "test sets", "none measured: imgcls evaluate RUN, then build again", "dim"
        return
    scores = [_describe_scores(*item) for item in description.test_sets.items()]
    yield from _with_name("test sets", scores, most=MOST_SETS)


def _describe_network(description: Description) -> str:
    weights = description.weights
    parameters = ", ".join(f"{key}={value}" for key, value in description.parameters.items())
    if not weights:
        return f"{description.network}({parameters}), without weights"
    counts = f"{weights['elements']:,} values in {weights['tensors']} tensors, {' '.join(weights['dtypes'])}"
    return f"{description.network}({parameters}): {counts}"


def _describe_foreign(description: Description) -> Iterator[tuple[str, str, str]]:
    model, manifest = description.manifest.get("model", {}), description.manifest
    yield "not ours", f"imgcls has not built it: it holds no {', '.join(description.missing)}", "yellow"
    yield "handler", str(model.get("handler", "none")), ""
    yield "model", _join(_pick(model, "serializedFile", "modelFile")) or "none", ""
    yield "manifest", _join(_pick(manifest, "runtime", "createdOn", "archiverVersion")), ""
    if description.classes:
        yield "classes", _describe_classes(description), ""


def _with_name(name: str, lines: list[str], *, most: int) -> Iterator[tuple[str, str, str]]:
    more = [f"and {len(lines) - most} more, see --json"] if len(lines) > most else []
    for index, line in enumerate([*lines[:most], *more]):
        yield name if index == 0 else "", line, ""


def _describe_engine(fields: Mapping[str, Any]) -> str:
    from imgcls.archive.describe import name_engine
    from model.engines.records import EngineRecord

    name = name_engine(fields)
    try:
        record = EngineRecord(**fields)
    except (ValueError, TypeError):  # ValueError: pydantic's
        return f"{name}: its record is not one that this version of imgcls can read"
    if not record.is_accepted:
        return f"{name} (refused: {record.reason})"
    told = _describe_comparison(record.comparison) if record.comparison else record.reason
    return f"{name}: {told}{'' if record.reproducible else ', not reproducible'}"


def _describe_comparison(comparison: Comparison) -> str:
    told = f"{comparison.top1_agreement:.2%} same answers on {comparison.images:,} images"
    told += f", logits within {comparison.largest_logit_difference:.2g}"
    if comparison.accuracy is None:
        return told
    eager = "" if comparison.reference_accuracy is None else f" (eager {_number(comparison.reference_accuracy)})"
    return f"{told}, accuracy {_number(comparison.accuracy)}{eager}"


def _describe_scores(name: str, scores: Mapping[str, Any]) -> str:
    parts = [f"{text} {_number(scores[key])}" for key, text in SCORES.items() if scores.get(key) is not None]
    return f"{name}: {', '.join(parts)}"


def _describe_training(description: Description) -> str:
    code = description.record.get("code") or {}
    commit = code.get("git_commit")
    dirty = ", with changes that were not committed" if code.get("git_dirty") else ""
    parts = [f"commit {commit[:12]}{dirty}"] if commit else ["no commit recorded"]
    told = _pick(description.training, "epochs", "lr", "batch_size") | _pick(description.record, "seed", "device")
    told |= _pick(description.record.get("versions") or {}, "torch", "imgcls")
    return ", ".join([*parts, *([_join(told)] if told else [])])


def _describe_data(description: Description) -> str:
    data = description.record.get("data") or {}
    splits = [f"{name} {split.get('files', 0):,} files" for name, split in (data.get("splits") or {}).items()]
    source = data.get("source") or description.training.get("data")
    return f"{source}{': ' if splits else ''}{', '.join(splits)}" if source else "not recorded"


def _describe_proof(description: Description) -> Iterator[tuple[str, str, str]]:
    proof = description.proof
    if proof.verified:
        yield "verified", "yes: every byte is as it was packed", "green"
    elif description.is_imgcls:
        yield "verified", f"NO: {proof.problem}", "bold red"
    else:
        yield "verified", "no: TorchServe's archives hold nothing to verify them by", "yellow"
    if proof.trust_file:
        yield "trust", f"{proof.trust_file}, policy {proof.policy}", ""
    yield from _describe_signatures(description)
    if proof.tree_sha256:
        yield "tree", f"sha256 {proof.tree_sha256}", ""
    yield "file", f"sha256 {proof.archive_sha256}", ""


def _describe_signatures(description: Description) -> Iterator[tuple[str, str, str]]:
    proof = description.proof
    if proof.verified and proof.problem:
        yield "signed", f"NOT as demanded: {proof.problem}", "bold red"
    elif proof.trusted_signer:
        yield "signed", f"by {proof.trusted_signer}, who is trusted", "green"
    elif not description.signatures:
        yield "signed", "no", ""
    else:
        said = [
            f"by {signature.signer} in {signature.where}" + ("" if signature.is_of_this else ", OF OTHER CONTENT")
            for signature in description.signatures
        ]
        why = f"{proof.trust_file}'s policy is {proof.policy}" if proof.policy else "give --trust FILE"
        unchecked = "" if proof.policy == "signed" else f"; not checked against trusted keys: {why}"
        is_right = all(signature.is_of_this for signature in description.signatures)
        yield "signed", f"says to be, {'; '.join(said)}{unchecked}", "" if is_right else "bold red"


def _flatten(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a.b for the keys of sections."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= {f"{key}.{sub}": each for sub, each in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _pick(fields: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: fields[key] for key in keys if key in fields}


def _join(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in fields.items())


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _describe_classes(description: Description) -> str:
    names = ", ".join(map(str, description.classes))
    shown = names if len(names) <= MOST_CLASSES else f"{names[:MOST_CLASSES].rpartition(',')[0]}, …"
    return f"{len(description.classes)}: {shown}"
