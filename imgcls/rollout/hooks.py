"""Hooks: what a plan calls around a step, a command or a web address, with the rollout's state as JSON."""

import json
import os
import subprocess

import requests

from imgcls.rollout.errors import HookError
from imgcls.rollout.plan import Hook

SHOWN = 300  # characters of what a command said


def run_hook(hook: Hook, *, point: str, payload: dict[str, object]) -> None:
    """Calls a hook and waits for it.

    A command gets the payload on its standard input, and IMGCLS_ROLLOUT_POINT in its environment; a web address gets it
    as the body of a POST.

    Raises:
        HookError: it failed, or took too long.
    """
    body = json.dumps({"point": point, **payload})
    if hook.exec is not None:
        _run_command(hook, point=point, body=body)
    elif hook.webhook is not None:
        _post(hook, hook.webhook, point=point, body=body)


def _run_command(hook: Hook, *, point: str, body: str) -> None:
    command = list(hook.exec or ())
    try:
        result = subprocess.run(
            command,
            input=body,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=hook.timeout_s,
            env=os.environ | {"IMGCLS_ROLLOUT_POINT": point},
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as err:  # ValueError: a NUL in the command
        raise HookError(f"hook {point}: {command[0]} could not be run to its end: {err}") from err
    if result.returncode != 0:
        said = " ".join((result.stderr or result.stdout).split())[-SHOWN:]
        raise HookError(f"hook {point}: {command[0]} ended with exit status {result.returncode}: {said or 'no word'}")


def _post(hook: Hook, url: str, *, point: str, body: str) -> None:
    try:
        response = requests.post(
            url, data=body, headers={"Content-Type": "application/json"}, timeout=hook.timeout_s, allow_redirects=False
        )
    except requests.RequestException as err:
        raise HookError(f"hook {point}: {url} was not reached: {type(err).__name__}") from err
    if not 200 <= response.status_code < 300:  # a redirect is not followed, so nobody has got it
        raise HookError(f"hook {point}: {url} answered {response.status_code}: {response.text[:SHOWN]}")
