"""Workers that start together on one unpacked archive, as TorchServe starts them."""

import os
import subprocess
import sys
from pathlib import Path

from imgcls.archive.contents import extract

WORKER = """
import sys
sys.path.insert(0, sys.argv[1])
import handler.entry
from types import SimpleNamespace
from pathlib import Path
from handler.trust import DEFAULT_TRUST, check_trust
for _ in range(3):
    check_trust(Path(sys.argv[1]), DEFAULT_TRUST)
import model.classifier, model.labels, model.selfcheck, handler.request
check_trust(Path(sys.argv[1]), DEFAULT_TRUST)
"""


def test_workers_that_start_together_do_not_refuse_what_the_others_write(archive: Path, tmp_path: Path):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    for number in range(3):
        folder = tmp_path / str(number)
        extract(archive, folder=folder)
        workers = [
            subprocess.Popen([sys.executable, "-P", "-c", WORKER, folder], env=environment, stderr=subprocess.PIPE)
            for _ in range(4)
        ]
        errors = [worker.communicate()[1].decode() for worker in workers]
        assert not any(worker.returncode for worker in workers), errors
        assert not list((folder / "model").rglob("*.pyc"))
