"""The build's side of `torch_jobs`: what needs torch runs there, so that this process stays small."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from imgcls.archive import torch_jobs
from imgcls.scratch import ScratchFolder
from model.errors import ModelError
from model.spec import SPEC_FILE, read_spec

TIMEOUT_S = 3600
IMPORTS = ("PIL.Image", "safetensors.torch", "pydantic", "yaml")  # what a network's jobs need beside torch


class JobError(Exception):
    """A job raised: the name of its exception's class, and its words; or it ended otherwise, and `name` is empty."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__(f"{name}: {message}" if name else message)
        self.name, self.message = name, message


def list_imports(run: Path) -> list[str]:
    """Returns what all jobs of a run's archive import beside torch, and takes long.

    Nothing for a run that cannot be read: what is wrong with it the build will say.
    """
    try:
        network = read_spec(run / SPEC_FILE).network
    except ModelError:
        return []
    return [*IMPORTS, "timm"] if network.startswith("timm/") else [*IMPORTS]


class TorchProcess:
    """The process; it imports torch and TorchServe from the moment of entry on, and runs one job after the other.

    Args:
        imports: further modules that more than one job will need.
    """

    def __init__(self, imports: Sequence[str] = ()) -> None:
        self._imports = imports

    def __enter__(self) -> Self:
        """Starts the process, in a group of its own: it ends with all that it has started."""
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
        environment.pop("PYTHONPATH", None)
        self._process = subprocess.Popen(
            [sys.executable, "-P", torch_jobs.__file__, *self._imports],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self._turns = ThreadPoolExecutor(1)
        return self

    @property
    def pid(self) -> int:
        """Of the process that forks."""
        return self._process.pid

    def __exit__(self, *_: object) -> None:
        """Ends the process, whatever it is at."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._turns.shutdown(cancel_futures=True)
        self._process.communicate()

    def start(
        self,
        file: str,
        function: str,
        *arguments: object,
        path: Sequence[str],
        environment: Mapping[str, str],
        timeout_s: float = TIMEOUT_S,
    ) -> "Future[Any]":
        """Starts a job.

        Args:
            file: Python file that has the function.
            function: its name.
            arguments: its arguments, such as JSON can express.
            path: what stands before the process's own `sys.path`.
            environment: its whole environment.
            timeout_s: after which the job is ended.

        Returns:
            What becomes the function's value, as JSON gives it; or a JobError.
        """
        job = {"file": file, "function": function, "arguments": arguments, "path": list(path)}
        return self._turns.submit(
            self._run, job | {"environment": {**environment}, "timeout_s": timeout_s}, timeout_s=timeout_s
        )

    def _run(self, job: dict[str, Any], *, timeout_s: float) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        with ScratchFolder("job") as folder:
            try:
                self._process.stdin.write(json.dumps(job | {"folder": folder}) + "\n")
                self._process.stdin.flush()
                status = json.loads(self._process.stdout.readline())["exit"]
            except (OSError, ValueError):
                raise JobError("", "torch and TorchServe cannot be imported; run imgcls doctor") from None
            if status is None:
                raise JobError("", f"no answer within {timeout_s:g} s")
            result = Path(folder) / "result.json"
            if not result.is_file():
                output = Path(folder) / "output.txt"  # not there where the process ended before it began
                printed = output.read_text(errors="replace").strip().splitlines() if output.is_file() else []
                raise JobError("", (printed or [f"exit status {status}"])[-1])
            outcome = json.loads(result.read_text(encoding="utf-8"))
            if "raised" in outcome:
                raise JobError(*outcome["raised"])
            return outcome["value"]
