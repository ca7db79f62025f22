"""What `imgcls tune` is made of: repacked archives, settings, images, load from the real k6, and what it refuses."""

import io
import json
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from unittest.mock import MagicMock
from urllib.parse import unquote, urlsplit
from xml.etree import ElementTree

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from handler.integrity import SIGNATURE_FILE
from imgcls.archive.build import build_archive
from imgcls.archive.contents import extract, read_contents
from imgcls.archive.publish import add_signature
from imgcls.archive.stage import ServingOptions
from imgcls.archive.verify import read_integrity, verify_archive
from imgcls.cli.main import app
from imgcls.client.errors import BadImageError, ConnectionFailedError, ServerError
from imgcls.errors import ArchiveError, RunError
from imgcls.serving.config import read_config
from imgcls.serving.errors import NotReadyError
from imgcls.serving.lint import lint_config, lint_model_config
from imgcls.serving.server import ServeOptions
from imgcls.serving.state import StateFolder
from imgcls.tuning import load as loading
from imgcls.tuning import trial
from imgcls.tuning.candidates import Candidate
from imgcls.tuning.errors import CandidateError, LoadError
from imgcls.tuning.images import MOST_IMAGES, gather_images
from imgcls.tuning.load import Target, closed_loop, open_loop
from imgcls.tuning.machine import describe_machine, find_processor
from imgcls.tuning.repack import make_model_config, repack
from imgcls.tuning.settings import tune_vmargs, write_tuned_config
from imgcls.tuning.slo import Slo
from tests.support.archives import spoil
from tests.support.http import Server

PROJECT = Path(__file__).parents[2]
CONFIG = PROJECT / "config.properties"


def tree_of(mar: Path) -> str:
    return read_integrity(mar).tree_sha256


class TestRepack:
    def test_gives_what_a_build_with_these_options_gives(self, archive: Path, color_run: Path, tmp_path: Path):
        options = ServingOptions(workers=4, batch_size=16, max_batch_delay_ms=5, engine="eager")
        built = build_archive(color_run, tmp_path / "store", name="colors", version="1.5", options=options)
        candidate = Candidate("eager", 4, 2, 16, 5)
        text = make_model_config(read_contents(archive).model_config, candidate, cores=8)
        mar = repack(archive, tmp_path / "colors.mar", model_config=text, tree_sha256=tree_of(archive))
        assert mar.read_bytes() == built.read_bytes()

    def test_result_is_verified_has_the_settings_and_loads(self, archive: Path, tmp_path: Path, load: Callable):
        text = make_model_config(read_contents(archive).model_config, Candidate("eager", 3, 2, 4, 7), cores=2)
        mar = repack(archive, tmp_path / "new.mar", model_config=text, tree_sha256=tree_of(archive))
        assert verify_archive(mar).integrity.tree_sha256 != verify_archive(archive).integrity.tree_sha256
        config = read_contents(mar).model_config
        assert [config[key] for key in ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay")] == [3, 3, 4, 7]
        assert config["handler"] == {"engine": "eager", "threads": 2, "decode": "cpu", "top_k": 5}
        extract(mar, folder=tmp_path / "unpacked")
        assert load(tmp_path / "unpacked").describe().json()["engine"] == "eager"

    def test_settings_that_are_not_tuned_stay(self):
        before = {"responseTimeout": 7, "deviceType": "cpu", "handler": {"max_pixels": 9}}
        text = make_model_config(before, Candidate("eager", 1, 1, 1, 1), cores=1)
        after = yaml.safe_load(text)
        assert (after["responseTimeout"], after["deviceType"]) == (7, "cpu")
        assert after["handler"] == {"max_pixels": 9, "engine": "eager", "threads": "auto"}
        assert not lint_model_config(text)

    def test_drops_a_signature_which_is_of_another_content(self, archive: Path, tmp_path: Path):
        add_signature(archive, b"{}", tmp_path / "signed.mar")
        signed = tmp_path / "signed.mar"
        mar = repack(signed, tmp_path / "new.mar", model_config="batchSize: 1\n", tree_sha256=tree_of(signed))
        with zipfile.ZipFile(mar) as opened:
            assert SIGNATURE_FILE not in opened.namelist()
        assert not verify_archive(mar).is_signed

    def test_what_is_no_archive_is_refused(self, tmp_path: Path):
        (tmp_path / "no.mar").write_bytes(b"no zip")
        with pytest.raises(ArchiveError, match="cannot be read"):
            repack(tmp_path / "no.mar", tmp_path / "new.mar", model_config="a: 1\n", tree_sha256="0" * 64)

    def test_what_cannot_be_written_is_not_told_as_a_broken_archive(self, archive: Path, tmp_path: Path):
        target = tmp_path / "gone" / "y.mar"
        with pytest.raises(RunError, match=r"gone/y\.mar: cannot be written: No such file or directory; make room"):
            repack(archive, target, model_config="{}", tree_sha256=tree_of(archive))

    def test_archive_that_was_replaced_since_is_refused_and_nothing_is_written(self, archive: Path, tmp_path: Path):
        with pytest.raises(ArchiveError, match=r"colors\.mar: was replaced while it was tuned.*tune it again"):
            repack(archive, tmp_path / "new.mar", model_config="a: 1\n", tree_sha256="0" * 64)
        assert not (tmp_path / "new.mar").exists()


class TestSettings:
    def test_tuned_configuration_keeps_the_users_and_passes_the_lint(self, tmp_path: Path):
        write_tuned_config(read_config(CONFIG), tmp_path / "config.properties", source=CONFIG)
        before, after = read_config(CONFIG), read_config(tmp_path / "config.properties")
        assert after["metrics_mode"] == "prometheus"
        assert {key: after[key] for key in before if key not in after["vmargs"]}.keys() == before.keys()
        assert after["allowed_urls"] == before["allowed_urls"]
        text = (tmp_path / "config.properties").read_text()
        assert not [finding for finding in lint_config(text, where="config.properties") if finding.status == "error"]

    def test_relative_paths_are_meant_against_the_users_folder(self, tmp_path: Path):
        (tmp_path / "user").mkdir()
        (tmp_path / "user" / "config.properties").write_text("metrics_config=metrics.yaml\nmetrics_mode=log\n")
        source = tmp_path / "user" / "config.properties"
        write_tuned_config(read_config(source), tmp_path / "config.properties", source=source)
        after = read_config(tmp_path / "config.properties")
        assert after["metrics_config"] == str(tmp_path / "user" / "metrics.yaml")
        assert after["metrics_mode"] == "prometheus"

    def test_log_file_lies_beside_it_and_is_named(self, tmp_path: Path):
        folder = tmp_path / "with blank"
        folder.mkdir()
        write_tuned_config(read_config(CONFIG), folder / "config.properties", source=CONFIG)
        option = read_config(folder / "config.properties")["vmargs"].split()[-1]
        assert Path(unquote(urlsplit(option.partition("=")[2]).path)) == folder / "log4j2.xml"
        assert ElementTree.parse(folder / "log4j2.xml").find(".//Logger[@name='MODEL_LOG']") is not None

    def test_collector_and_log_file_of_the_user_stay(self):
        log = Path("/log4j2.xml")
        ours = "-Dlog4j.configurationFile=file:///log4j2.xml"
        theirs = "-Dlog4j.configurationFile=file:///mine.xml"
        assert tune_vmargs("-Xmx1g", log_config=log) == f"-Xmx1g -XX:+UseParallelGC {ours}"
        assert tune_vmargs(f"-XX:+UseSerialGC {theirs}", log_config=log) == f"-XX:+UseSerialGC {theirs}"


class TestImages:
    def test_folder_is_sampled_from_everywhere(self, photos: Path, archive: Path, tmp_path: Path):
        images = gather_images(photos, archive=archive, scratch=tmp_path)
        assert len(images.files) == MOST_IMAGES
        assert {file.parent.name for file in images.files} == {"red", "green", "blue"}
        assert json.loads(images.listing.read_text()) == [str(file) for file in images.files]

    def test_made_ones_are_jpegs_of_a_photographs_size(self, archive: Path, tmp_path: Path):
        images = gather_images(None, archive=archive, scratch=tmp_path)
        with Image.open(images.files[0]) as picture:
            assert (picture.format, picture.size) == ("JPEG", (500, 375))
        assert 30_000 < images.files[0].stat().st_size < 300_000
        assert images.files[0].read_bytes() != images.files[1].read_bytes()

    def test_without_numpy_the_golden_inputs_are_sent(self, archive: Path, tmp_path: Path, monkeypatch):
        monkeypatch.setitem(sys.modules, "numpy", None)
        images = gather_images(None, archive=archive, scratch=tmp_path)
        assert "golden" in images.kind
        with zipfile.ZipFile(archive) as opened:
            assert images.files[0].read_bytes() in [
                opened.read(n) for n in opened.namelist() if n.startswith("golden/")
            ]

    def test_folder_without_images_is_refused(self, archive: Path, tmp_path: Path):
        with pytest.raises(LoadError, match="holds no image"):
            gather_images(tmp_path, archive=archive, scratch=tmp_path)


class TestMachine:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (
                "model name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512_vnni\n\nmodel name\t: Other",
                "Some CPU with AVX-512 VNNI",
            ),
            ("model name\t: Some CPU\nflags\t\t: fpu avx2\n", "Some CPU with AVX2"),
            ("model name\t: Some CPU\nflags\t\t: fpu\n", "Some CPU"),
        ],
    )
    def test_a_processor_is_named_with_what_int8_runs_on(self, tmp_path: Path, text: str, expected: str):
        (tmp_path / "cpuinfo").write_text(text)
        assert find_processor(cpuinfo=tmp_path / "cpuinfo") == expected

    def test_cache_of_files_takes_no_memory_from_the_workers_of_a_container(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        mb = 1_000_000
        for name, text in {"max": 900 * mb, "current": 800 * mb, "stat": f"anon 1\ninactive_file {700 * mb}"}.items():
            (tmp_path / f"memory.{name}").write_text(f"{text}\n")
        monkeypatch.setattr("imgcls.memory.CGROUP", tmp_path)
        machine = describe_machine()
        assert (machine.memory_bytes, machine.available_bytes) == (900 * mb, 800 * mb)

    def test_a_machine_without_cpuinfo_has_a_name_too(self, tmp_path: Path):
        assert find_processor(cpuinfo=tmp_path / "none")


class SlowServer(Server):
    """Answers each POST after `delay_s` with `status`; one at a time where it is `narrow`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.delay_s, self.status, self.narrow = 0.0, 200, False
        self.bodies: list[bytes] = []
        self.tokens: set[str | None] = set()
        self.gate = threading.Lock()


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: SlowServer = self.server
        server.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        server.tokens.add(self.headers["Authorization"])
        if server.narrow:
            with server.gate:
                time.sleep(server.delay_s)
        else:
            time.sleep(server.delay_s)
        self.send_response(server.status)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture
def server() -> Iterator[SlowServer]:
    with SlowServer() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(server: SlowServer, tmp_path: Path) -> Target:
    (tmp_path / "a.bin").write_bytes(b"one")
    (tmp_path / "b.bin").write_bytes(b"two")
    listing = tmp_path / "images.json"
    listing.write_text(json.dumps([str(tmp_path / "a.bin"), str(tmp_path / "b.bin")]))
    return Target(f"http://127.0.0.1:{server.server_address[1]}/predictions/x", "secret", listing, Slo(99, 10_000))


class TestLoad:
    def test_closed_loop_sends_the_images_with_the_token(self, server: SlowServer, target: Target):
        server.delay_s = 0.02
        stretch = closed_loop(target, connections=2, duration_s=1)
        assert set(server.bodies) == {b"one", b"two"}
        assert server.tokens == {"Bearer secret"}
        assert (stretch.answered, stretch.failed, stretch.dropped) == (len(server.bodies), 0, 0)
        assert stretch.p50_ms >= 20
        assert stretch.images_per_s > 0

    def test_open_loop_arrives_at_its_rate(self, server: SlowServer, target: Target):
        stretch = open_loop(target, rate=30, duration_s=2)
        assert 0.9 * 100 <= stretch.answered + stretch.dropped <= 1.1 * 100 + 1  # p99 wants 100 answers: 3.3 s
        assert stretch.rate == 30

    def test_arrivals_that_no_connection_is_free_for_are_dropped(self, server: SlowServer, target: Target):
        server.delay_s, server.narrow = 0.5, True
        strict = Target(target.url, target.token, target.images, Slo(50, 1))
        stretch = open_loop(strict, rate=60, duration_s=1)
        assert stretch.dropped > 0
        assert not stretch.meets(strict.slo)

    def test_other_statuses_are_failures(self, server: SlowServer, target: Target):
        server.status = 503
        stretch = closed_loop(target, connections=1, duration_s=1)
        assert stretch.answered == 0
        assert stretch.failed == len(server.bodies) > 0
        assert not stretch.meets(target.slo)

    @pytest.mark.parametrize(("limit_ms", "answered"), [(2000, True), (100, False)])
    def test_answer_is_waited_for_as_long_as_the_objective_allows(
        self, server: SlowServer, target: Target, monkeypatch, limit_ms: float, answered: bool
    ):
        monkeypatch.setattr(loading, "ANSWER_S", 1.0)
        server.delay_s = 1.5
        patient = Target(target.url, target.token, target.images, Slo(99, limit_ms))
        stretch = closed_loop(patient, connections=1, duration_s=1)
        assert (stretch.answered > 0, stretch.failed == 0) == (answered, answered)

    def test_token_is_in_no_list_of_processes(self, server: SlowServer, target: Target, monkeypatch):
        commands = []
        run = subprocess.run
        monkeypatch.setattr(subprocess, "run", lambda command, **rest: commands.append(command) or run(command, **rest))
        closed_loop(target, connections=1, duration_s=1)
        assert server.tokens == {"Bearer secret"}
        assert "secret" not in " ".join(commands[0])

    def test_missing_k6_names_the_extra(self, monkeypatch, tmp_path: Path):
        monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(LoadError, match=r"imgcls\[tune\]"):
            loading.find_k6()

    def test_k6_that_fails_says_why(self, target: Target, tmp_path: Path):
        (tmp_path / "a.bin").unlink()
        with pytest.raises(LoadError, match=r"k6 ended with exit status \d+: .*a\.bin"):
            closed_loop(target, connections=1, duration_s=1)


CANDIDATE = Candidate("eager", 1, 1, 1, 1)


def make_subject(archive: Path, folder: Path) -> trial.Subject:
    return trial.Subject(
        archive=archive,
        tree_sha256=tree_of(archive),
        contents=read_contents(archive),
        config=CONFIG,
        trust=folder / "trust.yaml",
        images=(Path("a.png"),),
        listing=folder / "images.json",
        slo=Slo(99, 50),
        cores=1,
        scratch=folder,
    )


class TestImagesOfACandidate:
    @pytest.mark.parametrize(
        ("error", "kind", "words"),
        [
            (BadImageError(status=415, code="unsupported", reason="no image"), LoadError, "take it out of --images"),
            (ServerError("500"), CandidateError, "eager, 1 worker x 1 thread, batch 1: a.png was not answered: 500"),
            (ConnectionFailedError("it is gone"), CandidateError, "a.png was not answered: it is gone"),
        ],
    )
    def test_a_server_that_fails_at_one_ends_the_candidate_and_a_refused_one_the_tuning(
        self, archive: Path, tmp_path: Path, monkeypatch, error: Exception, kind: type[Exception], words: str
    ):
        (tmp_path / "a.png").write_bytes(b"image")
        monkeypatch.chdir(tmp_path)
        client = MagicMock()
        client.__enter__.return_value.predict.side_effect = error
        monkeypatch.setattr(trial, "inference_client", lambda *_: client)
        monkeypatch.setattr(trial, "start", lambda options: MagicMock())
        with pytest.raises(kind, match=words):
            trial.run_trial(make_subject(archive, tmp_path), CANDIDATE, effort=trial.Effort(1.0, 1))

    def test_a_server_that_does_not_start_ends_the_candidate_and_names_no_log_that_is_removed(
        self, archive: Path, tmp_path: Path, monkeypatch
    ):
        def start(options: ServeOptions) -> None:
            raise NotReadyError(f"a worker died: no luck; see {StateFolder(options.state).model_log}")

        monkeypatch.setattr(trial, "start", start)
        with pytest.raises(CandidateError, match=r"eager, 1 worker x 1 thread, batch 1: a worker died: no luck$"):
            trial.run_trial(make_subject(archive, tmp_path), CANDIDATE, effort=trial.Effort(1.0, 1))


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--slo", "fast"], "--slo is 'fast'"),
            (["--slo", "p99=50ms", "--budget", "long"], "--budget is 'long'"),
            (["--slo", "p99=50ms", "--stretch", "0s"], "--stretch is '0s'"),
            (["--slo", "p99=50ms", "--stretch", "0.5s"], "--stretch is '0.5s'; expected 1s or longer"),
            (["--slo", "p99=50ms", "--engines", "openvino"], "'openvino' is not in this archive, which offers eager"),
            (["--slo", "p99=50ms", "--images", "/nowhere"], "/nowhere is no folder"),
            (["--slo", "p99=50ms", "--ts-config", "/nowhere.properties"], "/nowhere.properties: cannot be read"),
        ],
    )
    def test_are_one_clear_line(self, archive: Path, tmp_path: Path, arguments: list[str], said: str):
        result = run_tune(archive, "--out", tmp_path / "out", *arguments)
        assert said in str(result.exception)
        assert "\n" not in str(result.exception)
        assert not (tmp_path / "out").exists()

    def test_settings_that_serve_refuses_are_named_where_they_stand(self, archive: Path, tmp_path: Path):
        config = tmp_path / "config.properties"
        config.write_text(f"{CONFIG.read_text()}job_queue_size=many\n")
        result = run_tune(archive, "--slo", "p99=50ms", "--ts-config", config, "--out", tmp_path / "out")
        assert str(result.exception).startswith(f"{config}:")
        other = spoil(
            archive,
            tmp_path / "x.mar",
            work=tmp_path / "x",
            edits={"model-config.yaml": ("batchSize: 8", "batchSize: a")},
        )
        result = run_tune(other, "--slo", "p99=50ms", "--out", tmp_path / "out")
        assert str(result.exception).startswith(f"{other}!model-config.yaml:")

    def test_missing_archive(self, tmp_path: Path):
        result = run_tune(tmp_path / "no.mar", "--slo", "p99=50ms")
        assert "there is no such archive" in str(result.exception)

    def test_changed_archive_is_not_served(self, archive: Path, tmp_path: Path):
        changed = tmp_path / "colors.mar"
        buffer = io.BytesIO(archive.read_bytes())
        with zipfile.ZipFile(buffer, "a") as opened:
            opened.writestr("added.py", "import os")
        changed.write_bytes(buffer.getvalue())
        result = run_tune(changed, "--slo", "p99=50ms", "--out", tmp_path / "out")
        assert isinstance(result.exception, ArchiveError)
        assert "added.py" in str(result.exception)

    def test_folder_that_cannot_be_written_is_refused_before_anything_is_measured(
        self, archive: Path, tmp_path: Path, monkeypatch
    ):
        below = run_tune(archive, "--slo", "p99=50ms", "--out", archive / "out")
        assert f"--out: {archive} is a file; name a folder" in str(below.exception)
        monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)  # as root may write anywhere
        result = run_tune(archive, "--slo", "p99=50ms", "--out", tmp_path / "some" / "out")
        assert f"--out: {tmp_path} cannot be written; name another folder" in str(result.exception)

    def test_folder_that_holds_the_archive_is_not_written_into(self, archive: Path):
        result = run_tune(archive, "--slo", "p99=50ms", "--out", archive.parent)
        assert "would be overwritten" in str(result.exception)


def run_tune(archive: Path, *arguments: object):
    return CliRunner().invoke(app, ["tune", *map(str, (archive, *arguments))])
