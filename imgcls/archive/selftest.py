"""Answers an unpacked archive's golden inputs as a TorchServe worker would.

Runs as a process of its own, `python -P FILE`, without the checkout on $PYTHONPATH: `model` and `handler` can then
only be the archive's. It imports torch and TorchServe at once, which takes seconds, and waits for one line on standard
input: the unpacked archive's folder. So it can be started before there is an archive. It prints one JSON line,
[{"status", "body"}, …] for the golden inputs. A failure is a traceback, its reason as the last line on standard error,
and a non-zero exit. Where its input ends before a folder came, it ends in silence.
"""

import importlib.util
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

EVERY_CLASS = {"top_k": "1000000"}  # as the expected class may be any of them


def main() -> None:
    """Waits for a folder, loads the archive in it, sends every golden input as one batch, and prints what came back."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # what the handler prints is no answer
        worker = import_worker()
        if line := sys.stdin.readline():
            print(json.dumps(answer_golden(worker, Path(line.removesuffix("\n")))), file=answers)


def import_worker() -> ModuleType:
    """Imports the module of that name from beside this file: no package `imgcls` is on the path here."""
    spec = importlib.util.spec_from_file_location("imgcls_worker", Path(__file__).with_name("worker.py"))
    assert spec is not None and spec.loader is not None
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer_golden(worker: ModuleType, folder: Path) -> list[dict[str, Any]]:
    """Returns status and parsed answer of each golden input."""
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    golden = folder / "golden"
    files = [golden / item["file"] for item in json.loads((golden / "expected.json").read_text(encoding="utf-8"))]
    service = worker.load_service(folder, batch_size=len(files))
    answers = worker.ask(service, [worker.Request(body=file.read_bytes(), headers=EVERY_CLASS) for file in files])
    return [{"status": answer.status, "body": answer.json()} for answer in answers]


if __name__ == "__main__":
    try:
        main()
    except Exception as err:
        traceback.print_exc()
        sys.exit(f"{type(err).__name__}: {' '.join(str(err).split())}")
