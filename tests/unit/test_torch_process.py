"""The process that imports torch once, and forks for each job."""

import os
import time
from pathlib import Path

import psutil
import pytest

from imgcls.archive import selftest
from imgcls.archive.torch_process import JobError, TorchProcess

JOBS = """
import os, sys, time
def echo(*arguments):
    return {"got": arguments, "path": sys.path[:1], "mark": os.environ["MARK"], "torch": "torch" in sys.modules}
def noise(): print("noise"); os.system("echo more"); return 1
def keep(): import builtins; builtins.kept = True
def is_kept(): import builtins; return hasattr(builtins, "kept")
def fail(): raise LookupError("no\\nluck")
def leave(): os._exit(3)
def leave_with_words(): os.write(2, b"first\\nlast words\\n"); os._exit(3)
def hang(): time.sleep(600)
def pid(): return os.getpid()
"""


@pytest.fixture(scope="module")
def process() -> TorchProcess:
    with TorchProcess() as process:
        yield process


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("jobs") / "jobs.py"
    file.write_text(JOBS)
    return str(file)


def start(process: TorchProcess, jobs: str, function: str, *arguments: object, timeout_s: float = 60):
    return process.start(jobs, function, *arguments, path=["/first"], environment={"MARK": "m"}, timeout_s=timeout_s)


def test_a_job_gets_its_arguments_path_and_environment_and_a_torch_that_is_imported(process, jobs):
    value = start(process, jobs, "echo", 1, "two", [3.5, None]).result()
    assert value == {"got": [1, "two", [3.5, None]], "path": ["/first"], "mark": "m", "torch": True}


def test_what_a_job_prints_is_no_answer(process, jobs):
    assert start(process, jobs, "noise").result() == 1


def test_one_job_leaves_nothing_to_the_next(process, jobs):
    started = [start(process, jobs, "keep"), start(process, jobs, "is_kept")]
    assert [job.result() for job in started] == [None, False]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("fail", "LookupError: no luck"),
        ("leave", "exit status 3"),
        ("leave_with_words", "last words"),
        ("missing", "AttributeError: .* has no attribute 'missing'"),
    ],
)
def test_a_job_that_fails_says_why_in_one_line_and_the_next_one_runs(process, jobs, function, message):
    with pytest.raises(JobError, match=f"^{message}$"):
        start(process, jobs, function).result()
    assert start(process, jobs, "echo").result()["got"] == []


def test_a_job_that_hangs_is_ended(process, jobs):
    with pytest.raises(JobError, match=r"^no answer within 0\.5 s$"):
        start(process, jobs, "hang", timeout_s=0.5).result()
    assert start(process, jobs, "echo").result()["got"] == []


def test_leaving_ends_the_process_and_the_job_that_runs(jobs):
    with TorchProcess() as process:
        start(process, jobs, "pid").result()
        waiting = start(process, jobs, "hang")
        host = psutil.Process(process.pid)
        while not (children := host.children()):
            time.sleep(0.01)
    with pytest.raises(JobError, match="cannot be imported"):
        waiting.result()
    _, alive = psutil.wait_procs([host, *children], timeout=10)
    assert not alive


def test_without_torch_it_says_so(jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    broken = tmp_path / "torch_jobs.py"
    broken.write_text("import no_such_module")
    monkeypatch.setattr("imgcls.archive.torch_process.torch_jobs.__file__", str(broken))
    with TorchProcess() as process, pytest.raises(JobError, match="run imgcls doctor"):
        start(process, jobs, "echo").result()


def test_the_self_test_sends_the_golden_inputs_in_their_order(process, tmp_path: Path):
    (tmp_path / "MAR-INF").mkdir()
    (tmp_path / "golden").mkdir()
    (tmp_path / "MAR-INF" / "MANIFEST.json").write_text('{"model": {"modelName": "m", "handler": "code.py"}}')
    (tmp_path / "late.py").write_text("")
    (tmp_path / "code.py").write_text(
        "def handle(data, context):\n"
        "    if data is None: return\n"
        "    import late\n"
        "    print('noise')\n"
        "    return [{'got': bytes(item['body']).decode()} for item in data]\n"
    )
    for name, text in {"expected.json": '[{"file": "b"}, {"file": "a"}]', "a": "1", "b": "2"}.items():
        (tmp_path / "golden" / name).write_text(text)
    job = process.start(
        selftest.__file__, "answer_golden", str(tmp_path), path=[str(tmp_path)], environment=dict(os.environ)
    )
    assert job.result() == [{"status": 200, "body": {"got": "2"}}, {"status": 200, "body": {"got": "1"}}]
