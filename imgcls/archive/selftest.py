"""Answers an unpacked archive's golden inputs as a TorchServe worker would: a job of `torch_jobs`.

Imports nothing of imgcls: `model` and `handler` can then only be the archive's.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

EVERY_CLASS = {"top_k": "1000000"}  # as the expected class may be any of them


def answer_golden(folder: str) -> list[dict[str, Any]]:
    """Loads an archive, sends every golden input as one batch, and returns status and parsed answer of each."""
    worker = sys.modules["imgcls_worker"]  # torch_jobs has imported it
    os.chdir(folder)
    golden = Path(folder) / "golden"
    files = [golden / item["file"] for item in json.loads((golden / "expected.json").read_text(encoding="utf-8"))]
    service = worker.load_service(Path(folder), batch_size=len(files))
    answers = worker.ask(service, [worker.Request(body=file.read_bytes(), headers=EVERY_CLASS) for file in files])
    return [{"status": answer.status, "body": answer.json()} for answer in answers]
