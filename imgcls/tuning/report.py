"""What a person reads of a tuning, and what a machine does."""

from collections.abc import Sequence
from typing import Any

from imgcls.tuning.candidates import Candidate
from imgcls.tuning.run import Tuned
from imgcls.tuning.settings import FRONTEND_SETTINGS
from imgcls.tuning.slo import Slo
from imgcls.tuning.trial import Trial
from imgcls.tuning.verdict import Outcome

FORMAT = "imgcls-tuning/1"


def as_table(tuned: Tuned) -> str:
    """Returns the candidates, the best first, and what is not in the table."""
    slo, recommended = tuned.options.slo, tuned.verdict.recommended
    head = ("", "candidate", f"images/s at {slo}", "runs", "p50 ms", "p99 ms", "closed loop/s", "memory MB")
    ordered = sorted(tuned.outcomes, key=lambda outcome: (outcome.candidate != recommended, -outcome.rate))
    rows = [head, *(_row(outcome, is_recommended=outcome.candidate == recommended) for outcome in ordered)]
    lines = _align(rows)
    lines += [f"left out: {text}" for text in (*tuned.space.left_out, *tuned.failures.values())]
    if tuned.not_reached:
        lines.append(f"left out: {len(tuned.not_reached)} more candidates, for want of time; --budget gives more")
    return "\n".join(lines)


def as_text(tuned: Tuned) -> str:
    """Returns the verdict, as the last words of the command."""
    verdict = tuned.verdict
    if verdict.recommended is None:
        return f"{verdict.word}: {verdict.reason}"
    return f"recommended: {verdict.recommended}\n{verdict.word}: {verdict.reason}"


def describe_trial(candidate: Candidate, trial: Trial, stage: str, *, slo: Slo) -> str:
    """Returns one measurement in one line."""
    found = f"{trial.rate:.1f} images/s at {slo}" if trial.rate else f"misses {slo}"
    latency = f"p{slo.percentile:g} {trial.best.slo_ms:.1f} ms at {trial.best.rate or 0:.1f}/s"
    return f"{stage}: {candidate}: {found} ({latency}; closed loop {trial.saturation.images_per_s:.1f}/s)"


def as_dict(tuned: Tuned) -> dict[str, Any]:
    """Returns all measurements, for pipelines and for whoever doubts them."""
    options, verdict = tuned.options, tuned.verdict
    return {
        "format": FORMAT,
        "verdict": verdict.word,
        "reason": verdict.reason,
        "recommended": verdict.recommended.as_dict() if verdict.recommended else None,
        "within_noise": [each.as_dict() for each in verdict.rivals],
        "archive": {
            "path": str(options.archive.absolute()),
            "model": tuned.model,
            "version": tuned.version,
            "tree_sha256": tuned.tree_sha256,
        },
        "slo": {"percentile": options.slo.percentile, "limit_ms": options.slo.limit_ms},
        "machine": {name: getattr(tuned.machine, name) for name in tuned.machine.__dataclass_fields__},
        "images": tuned.images,
        "budget_s": options.budget_s,
        "wall_s": round(tuned.wall_s, 1),
        "stretch_s": options.stretch_s,
        "frontend_settings": {setting.key: setting.value for setting in FRONTEND_SETTINGS},
        "candidates": [_outcome_as_dict(outcome) for outcome in tuned.outcomes],
        "could_not_be_served": [each.as_dict() | {"reason": why} for each, why in tuned.failures.items()],
        "not_reached": [each.as_dict() for each in tuned.not_reached],
        "left_out": list(tuned.space.left_out),
    }


def _outcome_as_dict(outcome: Outcome) -> dict[str, Any]:
    return {
        **outcome.candidate.as_dict(),
        "images_per_s_at_slo": outcome.rate,
        "spread": outcome.spread,
        "memory_bytes": outcome.memory_bytes,
        "trials": [trial.as_dict() for trial in outcome.trials],
        "finals": [trial.as_dict() for trial in outcome.finals],
    }


def _row(outcome: Outcome, *, is_recommended: bool) -> tuple[str, ...]:
    stretch, spread = outcome.shown.best, outcome.spread
    rate = f"{outcome.rate:.1f}" if outcome.rate else "missed"
    return (
        "*" if is_recommended else "",
        str(outcome.candidate),
        rate + (f" ({spread[0]:.1f} to {spread[1]:.1f})" if spread else ""),
        str(len(outcome.counted)),
        f"{stretch.p50_ms:.1f}",
        f"{stretch.p99_ms:.1f}",
        f"{outcome.shown.saturation.images_per_s:.1f}",
        f"{outcome.memory_bytes / 1e6:,.0f}",
    )


def _align(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        texts = [
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(texts).rstrip())
    return lines
