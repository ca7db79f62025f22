"""MODEL_CARD.md: what a person wants to know of an archive before serving it.

Markdown with the front matter that Hugging Face's model cards have; written from the other files of the staged tree.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from imgcls.archive.facts import NOT_RECORDED, SCORES, Facts, Scores, read_facts
from imgcls.archive.words import describe_input, describe_limits, describe_purpose
from imgcls.gate.verdict import GateReport
from imgcls.training.record import CodeRecord, ParentRecord, SplitRecord, TrainRecord
from model.engines.records import EngineRecord
from model.spec import WEIGHTS_FILE, ModelSpec

CARD_FILE = "MODEL_CARD.md"
NOT_STATED = "not stated"
HEADINGS = {"precision_macro": "precision", "recall_macro": "recall", "f1_macro": "F1"}
SHORT = 12  # digits of a hash that a person compares
NAMED = 100  # classes that are listed
# Of train_config.yaml: where files lay and how fast it went, which made no difference to the weights.
_LEFT_OUT = {"data", "device", "golden", "out", "strict", "teacher", "threads", "weights", "workers"}
# Of those at https://huggingface.co/docs/hub/repositories-licenses that are SPDX ids but for their case.
_HUB_LICENSES = {
    "apache-2.0",
    "bsd-2-clause",
    "bsd-3-clause",
    "cc-by-4.0",
    "cc-by-sa-4.0",
    "cc0-1.0",
    "isc",
    "mit",
    "mpl-2.0",
}


def write_card(folder: Path, *, name: str, version: str, weights_sha256: str, license: str | None = None) -> None:
    """Writes MODEL_CARD.md into a staged archive.

    Args:
        folder: the staged tree.
        name: the model's name.
        version: its version.
        weights_sha256: of the tree's weights.
        license: of the model, in words or as an SPDX expression; None states none.

    Raises:
        ArchiveError: a file of the tree is not what imgcls writes, or the metrics are of other weights.
        SpecError: spec.yaml cannot be used.
    """
    facts = read_facts(folder, weights_sha256=weights_sha256)
    spec = facts.spec
    parts = [
        _make_front_matter(spec, license=license),
        f"# {name} {version}",
        f"{describe_purpose(spec)} Served by TorchServe.",
        _describe_spec(spec, weights_bytes=(folder / WEIGHTS_FILE).stat().st_size, sha256=weights_sha256),
        "## Data",
        _describe_data(facts.record),
        "## Training",
        _describe_training(facts),
        "## Measured on test sets",
        _describe_metrics(facts.test_sets),
        *_describe_gate(facts.gate),
        "## Engines",
        _describe_engines(facts.engines),
        "## Limits",
        _list(describe_limits(facts)),
        "## Classes",
        _describe_classes(spec.classes),
        "## Licence",
        _escape(license) if license else f"{NOT_STATED.capitalize()}: ask whoever gave you this archive.",
        "## Verify it",
        _describe_checks(name),
    ]
    (folder / CARD_FILE).write_text("\n\n".join(parts) + "\n", encoding="utf-8")


def _make_front_matter(spec: ModelSpec, *, license: str | None) -> str:
    """Returns the YAML that model hubs read; a licence that they have no id for is `other`, with a name."""
    fields: dict[str, Any] = {"pipeline_tag": "image-classification", "tags": ["imgcls", "torchserve", spec.network]}
    if license and license.lower() in _HUB_LICENSES:
        fields["license"] = license.lower()
    elif license:
        fields |= {"license": "other", "license_name": license}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, default_flow_style=None)}---"


def _describe_spec(spec: ModelSpec, *, weights_bytes: int, sha256: str) -> str:
    parameters = f", {_format_value(spec.parameters)}" if spec.parameters else ""
    return _list(
        [
            f"network: `{spec.network}`{parameters}",
            f"input: {describe_input(spec)}",
            f"weights: {weights_bytes:,} bytes of safetensors, SHA-256 `{sha256[:SHORT]}`",
        ]
    )


def _describe_data(record: TrainRecord | None) -> str:
    if record is None:
        return f"{NOT_RECORDED.capitalize()}: the weights did not come with a train_record.json."
    rows = [
        (name, f"{split.files:,}", *_describe_counts(split.classes), _describe_fingerprint(split))
        for name, split in record.data.splits.items()
    ]
    header = ("split", "images", "classes", "images a class", "fingerprint")
    text = (
        f"Source: {_escape(record.data.source)}. A fingerprint is one hash of all images and their classes, whatever "
        "the files are called; equal fingerprints are equal data."
    )
    return f"{text}\n\n{_table(header, rows)}"


def _describe_fingerprint(split: SplitRecord) -> str:
    return f"`{split.sha256[:SHORT]}`" if split.sha256 else "left out: the run is private"


def _describe_counts(classes: Mapping[str, int]) -> tuple[str, str]:
    counts = [count for count in classes.values() if count]
    spread = sorted({min(counts), max(counts)}) if counts else [0]
    return str(len(counts)), " to ".join(f"{count:,}" for count in spread)


def _describe_training(facts: Facts) -> str:
    lines = []
    if record := facts.record:
        lines += [
            f"code: {_describe_code(record.code)}",
            f"libraries: {', '.join(f'{name} {version}' for name, version in record.versions.items())}",
            f"on: {record.device}, seed {record.seed}",
            f"started from: {_describe_weights(record.parent)}",
            *([f"learnt the answers of: {_describe_weights(record.teacher)}"] if record.teacher else []),
            *_describe_privacy(record),
            *(f"resumed at epoch {part.first_epoch}{_describe_changes(part.changed)}" for part in record.resumed),
        ]
        if record.first_epoch > 1:
            lines.append(f"the epochs before {record.first_epoch}: {NOT_RECORDED}")
    if facts.config is None:
        return _list([*lines, f"settings: {NOT_RECORDED}, the run holds no train_config.yaml"])
    kept = {key: value for key, value in facts.config.items() if key not in _LEFT_OUT and value not in (None, {})}
    settings = _table(("setting", "value"), [(f"`{key}`", _format_value(value)) for key, value in kept.items()])
    return f"{_list(lines)}\n\n{settings}" if lines else settings


def _describe_code(code: CodeRecord) -> str:
    if code.git_commit is None:
        return f"no git commit, hash `{code.sha256[:SHORT]}`"
    changed = ", **with uncommitted changes**" if code.git_dirty else ""
    return f"git commit `{code.git_commit[:SHORT]}`{changed}, hash `{code.sha256[:SHORT]}`"


def _describe_weights(weights: ParentRecord | None) -> str:
    if weights is None:
        return "random weights"
    sha256 = f", SHA-256 `{weights.sha256[:SHORT]}`" if weights.sha256 else ""
    return f"{_escape(weights.name)}{sha256}"


def _describe_privacy(record: TrainRecord) -> Iterator[str]:
    if found := record.privacy:
        yield (
            f"privacy: ({found.epsilon:.3g}, {found.delta:.3g})-differentially private for each training image, by "
            f"{found.steps:,} steps of DP-SGD with noise {found.noise_multiplier:.3g} and clip {found.clip_norm:g}"
        )


def _describe_changes(changed: Mapping[str, Any]) -> str:
    return f", with another {', '.join(changed)}" if changed else ""


def _describe_metrics(sets: Mapping[str, Scores]) -> str:
    if not sets:
        return "Not measured: the run directory holds no numbers of a test set. Run `imgcls evaluate RUN`."
    header = ("test set", *(HEADINGS.get(score, score) for score in SCORES))
    rows = [(_escape(name), *(_format_number(scores[score]) for score in SCORES)) for name, scores in sets.items()]
    return f"{_table(header, rows)}\n\nPrecision, recall and F1 are macro averages: each class counts alike."


def _describe_gate(gate: GateReport | None) -> Iterator[str]:
    if gate:
        baseline = f", against weights `{gate.baseline_sha256[:SHORT]}`" if gate.baseline_sha256 else ""
        yield (
            f"Gate: {gate.verdict}, {len(gate.findings)} findings under policy "
            f"`{gate.policy_sha256[:SHORT]}`{baseline}; see gate.json."
        )


def _describe_engines(engines: Sequence[EngineRecord]) -> str:
    """Shows how near each engine comes to eager float32; one line where that is the only one."""
    if len(engines) < 2:
        return "Eager fp32 only: the reference, which the figures above were measured with."
    header = (
        "engine",
        "on",
        "same answer",
        "largest difference of a logit",
        "accuracy",
        "same bytes at each build",
        "",
    )
    return _table(header, [_describe_engine(engine) for engine in engines])


def _describe_engine(engine: EngineRecord) -> tuple[str, ...]:
    found = engine.comparison
    measured = ("", "", "")
    if found:
        accuracy = "" if found.accuracy is None else _format_number(found.accuracy)
        if found.reference_accuracy is not None:
            accuracy += f" (eager {_format_number(found.reference_accuracy)})"
        agreement = f"{found.top1_agreement:.2%} of {found.images:,} images"
        measured = (agreement, f"{found.largest_logit_difference:.4g}", accuracy)
    status = _escape(engine.reason) if engine.is_accepted else f"**refused**: {_escape(engine.reason)}"
    return engine.engine, engine.device, *measured, "yes" if engine.reproducible else "no", status


def _describe_classes(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - NAMED:,} more, in `index_to_name.json`" if len(classes) > NAMED else ""
    return ", ".join(_escape(name) for name in classes[:NAMED]) + more


def _describe_checks(name: str) -> str:
    return (
        f"    imgcls archive verify {name}.mar     # every byte is as it was packed\n"
        f"    imgcls provenance {name}.mar         # which data, which code, which numbers\n\n"
        "`provenance.json` holds the hashes in full, `sbom.cdx.json` the libraries."
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _format_number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}"


def _format_value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_format_value(each)}" for key, each in value.items())
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_format_value(each) for each in value) + "]"
    return _escape(str(value))


def _escape(text: str) -> str:
    """Keeps a name from being read as markup, or from breaking out of its line."""
    line = " ".join(text.split())
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#&~" else letter for letter in line)
