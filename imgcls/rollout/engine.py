"""Takes a rollout through its steps, one after the other; a step that fails, or an operator, takes everything back.

    verify ─► load ─► golden ─► shadow ─► canary … ─► promote ─► drain ─► keep-warm ─► retire
    verify ─► instance a ─► instance b … ─► promote ─► retire                                    server by server
       └────────┴────────┴─────────┴─────────┴───────────┴─────────┴──────────┘
                        roll back: all requests to the stable version, then the new one is taken away

Each step can be done again: after a kill, it begins anew where it stood. What it changes is the table, which the
supervisor follows too, so nobody waits for this process.
"""

import time

from imgcls.errors import ServingError
from imgcls.rollout import instances, steps, traffic
from imgcls.rollout.errors import HookError, RolloutError, StepFailedError
from imgcls.rollout.hold import hold
from imgcls.rollout.progress import AbortRequestedError, Progress
from imgcls.rollout.state import RolloutState, StepState

CLEAN_UP_S = 120.0  # how long a roll back tries to take the new version away from a server that is down


def run_rollout(run: Progress) -> RolloutState:
    """Goes on from where a rollout stands until it is promoted or rolled back; the caller holds the rollout's lock.

    Raises:
        NoGatewayError: the gateway was stopped meanwhile.
        ServingError: the gateway cannot be brought to what the rollout wants; its state says where it stands.
        RolloutError: the state cannot be written.
    """
    run.files.take_request()  # of before
    if run.state.status == "rolling-back":
        return roll_back(run, run.state.reason)
    try:
        while (number := run.state.current()) is not None:
            _run_step(run, number)
    except AbortRequestedError:
        return roll_back(run, f"aborted by {run.operator}")
    except (StepFailedError, HookError) as err:
        return roll_back(run, str(err))
    return run.finish("promoted", "")


def roll_back(run: Progress, reason: str) -> RolloutState:
    """Gives every request to the stable version, and takes the new one away.

    Where the stable version has been retired there is none to go back to at once: the rollout is over, promoted.

    Raises:
        ServingError: a server stays down; the requests are back, and `abort` tries the rest again.
    """
    began_s = time.monotonic()
    stable, number = run.state.stable.version, run.state.current()
    is_retiring = number is None or run.state.steps[number].kind == "retire"
    if is_retiring and run.model().find(stable) is None:
        return _stay(run, number, reason)
    if number is not None and run.state.steps[number].status == "running":  # the process that was at it has ended
        run.state = run.state.with_step(number, status="failed", ended_s=time.time(), reason="aborted")
    run.update(status="rolling-back", reason=reason)
    if run.model().get(stable).servers != ():  # none has it any more: then the new one goes on until one has it again
        run.change(lambda table: traffic.give_all(table, run.state.model, stable))
    took_s = time.monotonic() - began_s
    run.audit("requests are back", version=stable, reason=reason, seconds=round(took_s, 3))
    run.call_hooks("before", StepState(kind="abort"), ignore=True)
    _clean_up(run)
    run.call_hooks("after", StepState(kind="abort"), ignore=True)
    return run.finish("rolled-back", reason)


def _stay(run: Progress, number: int | None, reason: str) -> RolloutState:
    """Ends a rollout that can only be undone any more."""
    stable = run.state.stable.version
    steps.take_away(run, stable)
    if number is not None:
        run.set(run.state.with_step(number, status="done", ended_s=time.time(), reason=""))
    return run.finish("promoted", f"{reason}; {stable} had been retired by then, imgcls rollout undo loads it again")


def _run_step(run: Progress, number: int) -> None:
    run.require_gateway()
    step = run.state.steps[number]
    run.set(run.state.with_step(number, status="running", started_s=time.time(), reason=""))
    run.audit("step begins", step=step.name)
    run.call_hooks("before", step)
    try:
        is_trial = step.kind in ("shadow", "canary")
        is_cut_short = (run.state.status == "paused" and run.stay_paused() and is_trial) or _perform(run, step)
    except (StepFailedError, AbortRequestedError) as err:
        reason = str(err) or "aborted"
        run.set(run.state.with_step(number, status="failed", ended_s=time.time(), reason=reason))
        raise
    run.set(run.state.with_step(number, status="skipped" if is_cut_short else "done", ended_s=time.time()))
    run.audit("step ends", step=step.name, is_cut_short=is_cut_short)
    run.call_hooks("after", step)


def _perform(run: Progress, step: StepState) -> bool:
    """Does a step; returns whether an operator cut it short."""
    model, stable = run.state.model, run.state.stable.version
    match step.kind:
        case "verify":
            steps.verify(run)
        case "load":
            steps.load(run)
        case "golden":
            steps.ask_golden(run)
        case "shadow":
            plan = run.state.plan.shadow
            run.change(lambda table: traffic.shadow(table, model, run.candidate.version, plan.percent))
            return hold(run, step, min_samples=plan.min_samples)
        case "canary":
            weight, candidate = step.weight or 0.0, run.candidate.version
            run.change(lambda table: traffic.split(table, model, stable=stable, candidate=candidate, weight=weight))
            return hold(run, step)
        case "instance":
            return instances.swap(run, step)
        case "promote":
            steps.promote(run)
            run.change(lambda table: instances.spread(table, model, run.candidate.version))
        case "drain":
            steps.drain(run, stable)
        case "keep-warm":
            return run.wait(step.hold_s)
        case "retire":
            steps.take_away(run, stable)
        case _:
            raise RolloutError(f"there is no step {step.kind}")
    return False


def _clean_up(run: Progress) -> None:
    deadline_s = time.monotonic() + CLEAN_UP_S
    while True:
        try:
            instances.swap_back(run)
            steps.set_default(run)
            if run.state.candidate is not None:
                steps.take_away(run, run.state.candidate.version)
            return
        except ServingError:
            if time.monotonic() > deadline_s:
                raise
            time.sleep(1)
