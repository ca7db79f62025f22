"""Watches a step that has real requests, or copies of them, until its verdict is known."""

import time

from imgcls.rollout.analysis import judge
from imgcls.rollout.errors import StepFailedError
from imgcls.rollout.labels import load_labels
from imgcls.rollout.looks import Phase
from imgcls.rollout.observe import Observer
from imgcls.rollout.progress import POLL_S, Progress
from imgcls.rollout.state import StepState
from imgcls.rollout.verdicts import Report
from imgcls.rollout.window import Window


def hold(run: Progress, step: StepState, *, min_samples: int = 0) -> bool:
    """Judges the answers of both versions again and again; returns whether an operator cut it short.

    Args:
        run: the rollout.
        step: which of its steps.
        min_samples: answers of the new version without which the step does not end well.

    Raises:
        StepFailedError: the verdict is failed, or stays inconclusive where the plan then aborts.
        AbortRequestedError: an operator aborts.
    """
    analysis = run.state.plan.analysis
    stable, candidate = run.state.stable.version, run.candidate.version
    observer = Observer(run.gateway.paths, model=run.state.model, versions=(stable, candidate))
    began_s = time.monotonic()
    has_ended = False
    while True:
        left_s = analysis.interval_s if has_ended else step.hold_s - (time.monotonic() - began_s)
        if run.wait(min(analysis.interval_s, max(POLL_S, left_s))):  # no more often than the plan's schedule foresees
            return True
        held_s = time.monotonic() - began_s
        phase: Phase = "hold" if held_s < step.hold_s else "wait" if has_ended else "end"
        has_ended = has_ended or phase == "end"
        looks = run.state.looks + (phase != "end")
        run.samples = observer.read()
        window = Window(
            samples=run.samples,
            stable=stable,
            candidate=candidate,
            stage="shadow" if step.kind == "shadow" else "canary",
            look=run.state.plan.schedule().look(number=max(1, looks), phase=phase),
            labels=load_labels(run.files.labels_file),
            min_samples=min_samples,
        )
        run.report = report = judge(window, analysis.metrics, analysis.confidence)
        run.update(looks=looks)
        is_over = held_s >= step.hold_s + analysis.max_wait_s
        if report.verdict == "failed" or (phase != "hold" and (report.verdict == "successful" or is_over)):
            run.audit("verdict", step=step.name, **_numbers(report))
        if report.verdict == "failed":
            raise StepFailedError(f"{step.name}: {report.reason}")
        if phase == "hold":
            continue
        if report.verdict == "successful":
            return False
        if is_over:
            return _decide_unknown(run, step, report)


def _decide_unknown(run: Progress, step: StepState, report: Report) -> bool:
    reason = f"{step.name}: inconclusive: {report.reason}"
    match run.state.plan.analysis.on_inconclusive:
        case "abort":
            raise StepFailedError(reason)
        case "pause":
            run.pause(reason)
    return True


def _numbers(report: Report) -> dict[str, object]:
    """Returns a verdict with its figures, for the audit log."""
    return {
        "verdict": report.verdict,
        "reason": report.reason,
        "metrics": [
            {"name": each.name, "verdict": each.verdict, "value": each.value, "limit": each.limit, "n": each.samples}
            for each in report.metrics
        ],
    }
