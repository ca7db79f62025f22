import json
import logging
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imgcls.archive.export import export_onnx, quantise_onnx
from model.classifier import Classifier, softmax
from model.engines import open_vino
from model.engines.choose import choose_engine, list_candidates, load_engine
from model.engines.eager import load_pixel_network
from model.engines.engine import Engine
from model.engines.kinds import KINDS, parse_kind
from model.engines.open_vino import has_bf16, open_core
from model.engines.records import EngineRecord, dump_records, parse_records, read_records
from model.errors import EngineError, NumericError, WeightsError
from model.network import build_network
from model.spec import ModelSpec, dump_spec

PROJECT = Path(__file__).parents[2]
FILES = {"fp32": "engines/fp32.onnx", "bf16": "engines/fp32.onnx", "int8": "engines/int8.onnx"}
BF16 = ("openvino-bf16",) if has_bf16(open_core()) else ()  # where the processor has it
ONNX = ("onnxruntime", "openvino", "onnxruntime-int8", "openvino-int8", *BF16)
TOLERANCES = {"fp32": 1e-4, "bf16": 0.02, "int8": 0.05}  # of a probability


@dataclass(frozen=True)
class Made:
    """A folder with weights, their ONNX models and an engines.json, and pixels to ask."""

    folder: Path
    spec: ModelSpec
    pixels: np.ndarray

    def load(self, name: str, *, threads: int | None = None) -> Engine:
        kind = parse_kind(name)
        file = FILES[kind.precision] if name in ONNX else "weights.safetensors"
        return load_engine(self.folder / file, self.spec, kind=kind, device="cpu", threads=threads)


def make(folder: Path, channels: int) -> Made:
    torch.manual_seed(channels)
    spec = ModelSpec(
        parameters={"widths": [8, 8], "hidden": 16, "norm": "batch"},
        channels=channels,
        size=16,
        resize=16,
        mean=(0.4, 0.5, 0.6, 0.9)[:channels],
        std=(0.2, 0.25, 0.3, 0.4)[:channels],
        classes=("a", "b", "c", "d"),
    )
    (folder / "engines").mkdir(parents=True)
    state = build_network(spec).state_dict()
    state["classifier.4.weight"] *= 20  # so that the classes of random pixels differ
    save_file(state, folder / "weights.safetensors")
    (folder / "spec.yaml").write_text(dump_spec(spec))
    pixels = np.random.default_rng(channels).integers(0, 256, (24, channels, 16, 16), dtype=np.uint8)
    network = load_pixel_network(
        folder / "weights.safetensors", spec, kind=KINDS["eager"], layout=torch.contiguous_format
    )
    export_onnx(network, spec, folder / FILES["fp32"])
    quantise_onnx(folder / FILES["fp32"], folder / FILES["int8"], pixels=pixels)
    (folder / "engines.json").write_text(dump_records([record(name) for name in ONNX]))
    return Made(folder, spec, pixels)


def record(name: str, **fields: object) -> EngineRecord:
    file = FILES[parse_kind(name).precision] if name in ONNX else "weights.safetensors"
    return EngineRecord(**{"engine": name, "file": file, "status": "accepted", "reason": "for a test"} | fields)


@pytest.fixture(scope="module")
def made_by_channels(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Made]:
    return {channels: make(tmp_path_factory.mktemp(f"channels{channels}"), channels) for channels in (1, 3, 4)}


@pytest.fixture(scope="module")
def made(made_by_channels: dict[int, Made]) -> Made:
    return made_by_channels[3]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("name", [*ONNX, "eager-bf16"])
def test_every_engine_answers_as_eager_does_in_any_batch(made_by_channels, name, channels):
    made = made_by_channels[channels]
    engine, expected = made.load(name), softmax(made.load("eager").run(made.pixels[:5]), temperature=1)
    assert expected.std() > 0.05  # or anything would be near it
    for size in range(1, 6):
        logits = engine.run(made.pixels[:size])
        assert (logits.shape, logits.dtype) == ((size, 4), np.float32)
        assert np.abs(softmax(logits, temperature=1) - expected[:size]).max() < TOLERANCES[engine.kind.precision]


@pytest.mark.parametrize("name", [*ONNX, "eager"])
def test_an_answer_is_the_callers_own(made, name):
    engine = made.load(name)
    first = engine.run(made.pixels[:2])
    kept = first.copy()
    engine.run(made.pixels[2:4])
    assert np.array_equal(first, kept)


@pytest.mark.parametrize("name", [*ONNX, "eager"])
@pytest.mark.parametrize("threads", [1, min(2, os.cpu_count() or 1)])
def test_an_engine_takes_the_threads_it_is_given(made, name, threads):
    engine = made.load(name, threads=threads)
    assert engine.count_threads() == threads
    assert engine.describe()["threads"] == threads


@pytest.mark.parametrize("name", [*ONNX, "eager"])
def test_an_engine_describes_itself(made, name):
    engine = made.load(name)
    engine.warm_up(batch_sizes=(1, 3))
    said = engine.describe()
    assert said["engine"] == name
    assert said["device"] == "cpu"
    assert said["runtime"].split()[0] == {"eager": "torch"}.get(name, name.partition("-")[0])
    assert json.loads(json.dumps(said)) == said


@pytest.mark.parametrize("name", ["openvino-int8", *BF16])
def test_another_precision_is_another_computation_than_float32(made, name):
    assert not np.array_equal(made.load(name).run(made.pixels), made.load("openvino").run(made.pixels))


def test_bfloat16_on_a_processor_without_it_is_refused_and_auto_goes_on(made, tmp_path, monkeypatch):
    if BF16:
        core = open_core()
        other = SimpleNamespace(
            get_property=lambda device, name: ["FP32"], compile_model=core.compile_model, read_model=core.read_model
        )
        monkeypatch.setattr(open_vino, "open_core", lambda: other)
    folder = link(made, tmp_path, [record("openvino-bf16", file=FILES["bf16"]), record("openvino")])
    reason = "engine openvino-bf16: this processor has no bfloat16 instructions; auto takes another"
    with pytest.raises(EngineError, match=f"^{reason}$"):
        choose_engine(folder, made.spec, wanted="openvino-bf16")
    choice = choose_engine(folder, made.spec)
    assert (choice.engine.kind.name, choice.passed_over) == ("openvino", (reason,))


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the processor's instructions are not in /proc/cpuinfo")
def test_bfloat16_is_offered_where_the_processor_has_it():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert has_bf16(open_core()) == bool(flags & {"avx512_bf16", "avx_ne_convert", "bf16"})  # the last is Arm's


def test_signals_are_handled_after_another_thread_has_let_go_of_openvino(made):
    code = """
import os, signal, sys, threading
from pathlib import Path
from model.engines.choose import load_engine
from model.engines.kinds import parse_kind
from model.spec import read_spec

folder = Path(sys.argv[1])
spec = read_spec(folder / "spec.yaml")
held = [load_engine(folder / "engines/fp32.onnx", spec, kind=parse_kind("openvino"), device="cpu", threads=1)]
thread = threading.Thread(target=held.clear)
thread.start()
thread.join()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
os.kill(os.getpid(), signal.SIGUSR1)
"""
    result = subprocess.run(
        [sys.executable, "-c", code, made.folder], capture_output=True, text=True, cwd=PROJECT, timeout=120, check=False
    )
    assert (result.returncode, result.stdout) == (0, "handled\n"), result.stderr


def test_openvino_computes_float32_in_float32(made):
    """Its default is bfloat16 on a processor that has it, and then the answer depends on the machine."""
    difference = made.load("openvino").run(made.pixels) - made.load("eager").run(made.pixels)
    assert np.abs(difference).max() < 1e-4


@pytest.mark.parametrize("name", ONNX)
def test_a_missing_or_damaged_file_is_named(made, tmp_path, name):
    kind = parse_kind(name)
    with pytest.raises(EngineError, match=rf"engine {name}: its file .*x\.onnx is not there"):
        load_engine(tmp_path / "x.onnx", made.spec, kind=kind, device="cpu")
    whole = (made.folder / FILES[kind.precision]).read_bytes()
    for damaged in (b"", b"no model", whole[: len(whole) // 2]):
        (tmp_path / "x.onnx").write_bytes(damaged)
        with pytest.raises(EngineError, match=rf"engine {name}: x\.onnx cannot be loaded: .") as caught:
            load_engine(tmp_path / "x.onnx", made.spec, kind=kind, device="cpu")
        assert "\n" not in str(caught.value)


def test_a_damaged_package_is_refused_before_it_is_loaded(made, tmp_path):
    (tmp_path / "compiled.pt2").write_bytes(b"no package")
    with pytest.raises(EngineError, match=r"engine compiled: compiled\.pt2 is no package that imgcls built"):
        load_engine(tmp_path / "compiled.pt2", made.spec, kind=KINDS["compiled"], device="cpu")


def test_a_runtime_that_is_not_installed_is_named(made, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match="'onnxruntime' is not installed; install it on the server, or set engine"):
        made.load("onnxruntime")


@pytest.mark.parametrize("name", ["openvin", "OpenVINO", "", "tensorrt"])
def test_an_unknown_engine_is_answered_with_the_known_ones(made, name):
    with pytest.raises(
        EngineError, match=f"engine is '{name}'; expected auto or one of openvino-int8, .*eager"
    ) as caught:
        choose_engine(made.folder, made.spec, wanted=name)
    assert ("did you mean 'openvino'?" in str(caught.value)) == (name == "openvin")


@pytest.mark.parametrize("name", ["auto", *ONNX])
def test_a_worker_without_a_torch_engine_imports_no_torch_and_reports_to_nobody(made, tmp_path, name):
    program = f"""
import sys
from pathlib import Path
import numpy as np
from model.classifier import Classifier
from model.engines.choose import choose_engine
from model.selfcheck import GoldenCheck
from model.spec import read_spec
folder = Path({str(made.folder)!r})
spec = read_spec(folder / "spec.yaml")
choice = choose_engine(folder, spec, wanted={name!r}, threads=1)
Classifier(spec, choice.engine).probabilities(np.zeros((2, 3, 16, 16), np.uint8))
unwanted = ("torch", "timm", "onnx", "openvino_telemetry", "openvino.tools.ovc", "multiprocessing")
print([name for name in unwanted if sys.modules.get(name)], choice.engine.kind.name)
"""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(PROJECT)}
    for variable in ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY"):  # which silence them
        environment.pop(variable, None)
    command = [sys.executable, "-P", "-c", program]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=True)
    assert result.stdout.strip() == f"[] {'openvino-int8' if name == 'auto' else name}"
    assert list(tmp_path.iterdir()) == []  # as they come, both write an identifier for their telemetry


def test_auto_takes_the_first_that_the_archive_accepted(made, tmp_path):
    folder = link(made, tmp_path, [record("openvino-int8", status="refused"), record("onnxruntime")])
    choice = choose_engine(folder, made.spec, threads=1)
    assert (choice.engine.kind.name, choice.passed_over) == ("onnxruntime", ())
    assert choice.reason == "auto: the first of onnxruntime, eager"


def test_auto_without_a_record_is_eager(made, tmp_path):
    folder = link(made, tmp_path, None)
    choice = choose_engine(folder, made.spec)
    assert (choice.engine.kind.name, choice.reason) == ("eager", "auto: the first of eager")


def test_auto_passes_over_what_cannot_start_and_says_so(made, tmp_path, caplog):
    folder = link(made, tmp_path, [record("openvino-int8"), record("onnxruntime-int8"), record("onnxruntime")])
    (folder / FILES["int8"]).unlink()
    (folder / FILES["int8"]).write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        choice = choose_engine(folder, made.spec)
    assert choice.engine.kind.name == "onnxruntime"
    assert choice.reason.endswith("onnxruntime, eager that starts here")
    assert [text.split(":")[0] for text in choice.passed_over] == ["engine openvino-int8", "engine onnxruntime-int8"]
    assert [line.message for line in caplog.records] == [f"passed over: {text}" for text in choice.passed_over]


def test_auto_passes_over_what_does_not_compute_what_was_tested(made):
    def check(engine: Engine) -> None:
        if engine.kind.precision == "int8":
            raise NumericError(f"{engine.kind.name} is wrong here")

    choice = choose_engine(made.folder, made.spec, check=check)
    assert choice.engine.kind.name == (*BF16, "openvino")[0]
    assert choice.passed_over == ("openvino-int8 is wrong here", "onnxruntime-int8 is wrong here")


def test_where_nothing_is_left_the_last_reason_is_raised(made, tmp_path):
    folder = link(made, tmp_path, [record("openvino")])
    for file in (FILES["fp32"], "weights.safetensors"):
        (folder / file).unlink()
    with pytest.raises(WeightsError, match=r"weights\.safetensors: cannot be read"):
        choose_engine(folder, made.spec)


def test_a_named_engine_is_used_or_the_worker_does_not_start(made, tmp_path):
    choice = choose_engine(made.folder, made.spec, wanted="onnxruntime")
    assert (choice.engine.kind.name, choice.reason) == ("onnxruntime", "model-config.yaml names onnxruntime")
    folder = link(made, tmp_path, [record("openvino"), record("openvino-int8", status="refused")])
    with pytest.raises(EngineError, match="openvino-int8 is not in this archive, which offers openvino, eager; build"):
        choose_engine(folder, made.spec, wanted="openvino-int8")
    (folder / FILES["fp32"]).unlink()
    with pytest.raises(EngineError, match=r"engine openvino: its file .*fp32\.onnx is not there"):
        choose_engine(folder, made.spec, wanted="openvino")

    def refuse(engine: Engine) -> None:
        raise NumericError("wrong here")

    with pytest.raises(NumericError, match="wrong here"):
        choose_engine(folder, made.spec, wanted="eager", check=refuse)


def test_an_engine_of_another_device_is_refused_with_the_next_step(made):
    with pytest.raises(EngineError, match="openvino runs on cpu, and this worker has cuda:1; set engine: auto"):
        choose_engine(made.folder, made.spec, wanted="openvino", device="cuda:1")


def test_on_a_gpu_auto_takes_half_precision_only_if_it_was_compared_there():
    records = [record(name, device="cuda") for name in ("eager-fp16", "eager-bf16")]
    assert [kind.name for kind in list_candidates(records, device="cuda:0")] == ["eager-fp16", "eager-bf16", "eager"]
    on_cpu = [record(name) for name in ("eager-fp16", "openvino")]
    assert [kind.name for kind in list_candidates(on_cpu, device="cuda:0")] == ["eager"]
    assert [kind.name for kind in list_candidates(on_cpu, device="cpu")] == ["openvino", "eager"]


def test_engines_from_the_weights_need_no_record(made, tmp_path):
    choice = choose_engine(link(made, tmp_path, None), made.spec, wanted="eager-bf16")
    expected = Classifier.load(made.folder).logits(made.pixels)
    assert 0 < np.abs(choice.engine.run(made.pixels) - expected).max() < 0.05


def test_records_survive_the_file(tmp_path):
    records = [record("openvino", sha256="0" * 64), record("eager")]
    (tmp_path / "engines.json").write_text(dump_records(records))
    assert read_records(tmp_path) == tuple(records)
    assert [each.engine for each in read_records(tmp_path / "nowhere")] == ["eager"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "cannot be read"),
        ('[{"engine": "eager"}]', "status: Field required"),
        (json.dumps([record("eager").model_dump() | {"speed": 1}]), "speed: is not a field that is known here"),
        (json.dumps([record("openvino").model_dump() | {"file": "engines/../../x"}]), "file: String should match"),
        (json.dumps([record("openvino").model_dump() | {"file": "/etc/passwd"}]), "file: String should match"),
    ],
)
def test_what_is_no_record_is_refused(text, message):
    with pytest.raises(EngineError, match=rf"engines\.json: .*{message}"):
        parse_records(text)


def link(made: Made, folder: Path, records: list[EngineRecord] | None) -> Path:
    """An archive with the same files and other records."""
    (folder / "engines").mkdir()
    for file in ("weights.safetensors", "spec.yaml", *set(FILES.values())):
        (folder / file).hardlink_to(made.folder / file)
    if records is not None:
        (folder / "engines.json").write_text(dump_records(records))
    return folder
