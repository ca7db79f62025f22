"""A process that imports torch and TorchServe, and forks for each job that needs them: `python -P FILE [MODULE …]`.

Importing them takes seconds, so it is done once for all that a build has to do, while the build itself stages and
hashes. Every job runs in a child of its own: what one imports or changes, the next does not see. It imports nothing of
imgcls, so that the self-test's `model` and `handler` can only be the archive's.

Input: one job a line, as JSON: {"file", "function", "arguments", "path", "environment", "folder", "timeout_s"}; the
function of that Python file is called with these arguments, `path` before its own `sys.path`. Output: {"exit": …} for
each job, its status or null for one that took too long. Beforehand the job has written to its folder `result.json`,
with {"value"} or {"raised": its class and its words}, and to `output.txt` what it printed. The end of the input ends
the process.
"""

import contextlib
import importlib
import importlib.util
import json
import multiprocessing
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any


def main() -> None:
    """Imports, then runs jobs until the input ends."""
    import_file(Path(__file__).with_name("worker.py"))
    for name in sys.argv[1:]:
        with contextlib.suppress(ImportError):  # the job that needs it will say so
            importlib.import_module(name)
    # Where forking a process with these imports is not safe, each job imports anew.
    multiprocessing.set_start_method("fork" if sys.platform == "linux" else "spawn")
    for line in sys.stdin:
        job = json.loads(line)
        process = multiprocessing.Process(target=do, args=(job,))
        process.start()
        process.join(job["timeout_s"])
        is_late = process.is_alive()
        process.kill()
        process.join()
        print(json.dumps({"exit": None if is_late else process.exitcode}), flush=True)


def import_file(path: Path) -> ModuleType:
    """Imports a Python file under a name that no package has; once a process."""
    name = f"imgcls_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def do(job: dict[str, Any]) -> None:
    """Runs one job in this process, and leaves its result in the job's folder."""
    folder = Path(job["folder"])
    with (folder / "output.txt").open("wb") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.path[:0] = job["path"]
    try:
        value = getattr(import_file(Path(job["file"])), job["function"])(*job["arguments"])
        result = {"value": value}
    except Exception as err:
        traceback.print_exc()
        result = {"raised": [type(err).__name__, " ".join(str(err).split())]}
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
