import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from imgcls.archive import export, parity, workshop
from imgcls.archive.engines import build_engines, parse_wanted
from imgcls.archive.make_golden import write_golden
from imgcls.archive.parity import TOLERANCES, Images, compare, find_fault
from imgcls.errors import ArchiveError, UsageError
from model.engines.choose import choose_engine
from model.engines.open_vino import has_bf16, open_core
from model.engines.records import Comparison, Tolerance, read_records
from model.golden import GoldenItem
from model.selfcheck import GoldenCheck
from model.spec import read_spec

PROJECT = Path(__file__).parents[2]
HAS_BF16 = has_bf16(open_core())
BUILT = ["openvino-int8", "onnxruntime-int8", "openvino-bf16", "openvino", "onnxruntime"]
AUTO = [name for name in BUILT if HAS_BF16 or name != "openvino-bf16"]  # what is accepted here


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, train_photos) -> Path:
    run = tmp_path_factory.mktemp("runs") / "photos"
    assert train_photos(run, "--lr", 0.02, "--workers", 1, epochs=4) == 0
    return run


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """An archive's tree with every engine of `auto`; read only."""
    folder = stage(run, tmp_path_factory.mktemp("staged") / "tree")
    build_engines(run, folder, wanted=["auto"])
    return folder


def stage(run: Path, folder: Path) -> Path:
    folder.mkdir()
    for name in ("weights.safetensors", "spec.yaml", "index_to_name.json"):
        shutil.copyfile(run / name, folder / name)
    write_golden(run, folder)
    return folder


def read_items(folder: Path) -> list[GoldenItem]:
    return [GoldenItem(**item) for item in json.loads((folder / "golden" / "expected.json").read_text())]


def test_the_record_says_how_near_each_engine_is_and_on_which_images(staged):
    reference, *records = read_records(staged)
    assert (reference.engine, reference.comparison, reference.is_accepted) == ("eager", None, True)
    assert [record.engine for record in records] == BUILT
    for record in (record for record in records if record.engine in AUTO):
        precision = record.engine.partition("-")[2] or "fp32"
        assert record.file == ("engines/int8.onnx" if precision == "int8" else "engines/fp32.onnx")
        assert (staged / record.file).is_file()
        assert (record.status, record.reproducible, record.device) == ("accepted", True, "cpu")
        assert record.comparison.compared_on.startswith("5 of 5 validation images of photos")
        assert record.comparison.images == 5
        assert record.comparison.reference_accuracy is not None
        assert (record.comparison.largest_logit_difference > 0) == (precision != "fp32")
        assert (record.calibrated_on is None) == (precision != "int8")
        assert record.tolerance == TOLERANCES[precision]
    bf16 = next(record for record in records if record.engine == "openvino-bf16")
    assert bf16.is_accepted == HAS_BF16
    assert HAS_BF16 or (bf16.file, "no bfloat16 instructions" in bf16.reason) == (None, True)
    assert records[0].calibrated_on.startswith("26 of 26 training images of photos")
    assert records[0].built_with.split(" ")[::2] == ["torch", "onnx", "onnxruntime", "openvino"]


def test_engines_answer_their_own_golden_answers_at_a_workers_start(staged):
    spec = read_spec(staged / "spec.yaml")
    for name in ["auto", *AUTO, "eager"]:
        choice = choose_engine(staged, spec, wanted=name, check=GoldenCheck(staged, spec, batch_size=8))
        assert choice.passed_over == ()
    for item in read_items(staged):
        assert list(item.engines) == AUTO
        rounded = pytest.approx(item.probability, abs=6e-5)  # to four digits, half a unit of the last, and 1e-5
        assert item.engines["openvino"].probability == rounded
        assert item.engines["openvino-int8"].probability != item.probability


def test_golden_inputs_come_in_batches_of_the_workers_size(staged, monkeypatch):
    """For a larger batch than it will serve, an engine would take memory that it keeps."""
    spec = read_spec(staged / "spec.yaml")
    engine, sizes = choose_engine(staged, spec, wanted="eager").engine, list[int]()
    answer = engine.run
    monkeypatch.setattr(engine, "run", lambda pixels: sizes.append(len(pixels)) or answer(pixels))
    GoldenCheck(staged, spec, batch_size=3)(engine)
    count = len(read_items(staged))
    assert count > 3
    assert sizes == [3] * (count // 3) + [count % 3] * (count % 3 > 0)


def test_two_builds_give_the_same_bytes(run, staged, tmp_path):
    """In another folder, and without what the first has left in memory."""
    other = stage(run, tmp_path / "other")
    build_engines(run, other, wanted=["openvino", "auto"])
    files = sorted(path.relative_to(staged) for path in staged.rglob("*") if path.is_file())
    assert {"fp32.onnx", "int8.onnx"} <= {path.name for path in files}
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    assert [path for path in files if (staged / path).read_bytes() != (other / path).read_bytes()] == []


def test_an_onnx_model_tells_nothing_of_the_machine(run, staged):
    for file in (staged / "engines").iterdir():
        data = file.read_bytes()
        for text in (str(PROJECT), str(run.parent), "site-packages", "stack_trace", ".py"):
            assert text.encode() not in data


def test_eager_alone_costs_nothing(run, tmp_path, monkeypatch):
    monkeypatch.setattr(workshop, "Workshop", None)
    folder = stage(run, tmp_path / "tree")
    before = (folder / "golden" / "expected.json").read_bytes()
    [record] = build_engines(run, folder)
    assert (record.engine, record.status) == ("eager", "accepted")
    assert read_records(folder) == (record,)
    assert not (folder / "engines").exists()
    assert (folder / "golden" / "expected.json").read_bytes() == before


def test_without_the_data_golden_images_stand_in_and_the_record_says_so(color_run, tmp_path):
    said: list[str] = []
    folder = stage(color_run, tmp_path / "tree")
    records = build_engines(color_run, folder, wanted=["onnxruntime-int8"], on_progress=said.append)
    assert records[1].calibrated_on == records[1].comparison.compared_on == "1 golden image"
    assert records[1].comparison.accuracy is None
    assert [line for line in said if "warning" in line] == [
        "warning: golden images stand in for those of train: train_config.yaml names no data",
        "warning: golden images stand in for those of val: train_config.yaml names no data",
    ]


def test_an_engine_outside_its_tolerance_is_refused(run, tmp_path, monkeypatch):
    strict = Tolerance(probability_shift=0, top1_loss=0, accuracy_drop=0, golden=0.01)
    monkeypatch.setitem(parity.TOLERANCES, "int8", strict)
    said: list[str] = []
    folder = stage(run, tmp_path / "tree")
    records = build_engines(run, folder, wanted=["auto"], on_progress=said.append)
    status = {record.engine: record.status for record in records}
    assert status["openvino-int8"] == status["onnxruntime-int8"] == "refused"
    assert status["openvino"] == status["eager"] == "accepted"
    refused = next(record for record in records if record.engine == "openvino-int8")
    assert refused.file is None
    assert refused.reason.startswith("the probability of eager's best class moves by 0.")
    assert f"warning: engine openvino-int8 is left out: {refused.reason}" in said
    assert [file.name for file in (folder / "engines").iterdir()] == ["fp32.onnx"]
    assert all("openvino-int8" not in item.engines for item in read_items(folder))
    assert choose_engine(folder, read_spec(folder / "spec.yaml")).engine.kind.name == AUTO[2]

    with pytest.raises(ArchiveError, match=r"engine openvino-int8 is refused: .* moves by 0\..*; nothing was written"):
        build_engines(run, stage(run, tmp_path / "named"), wanted=["auto", "openvino-int8"])
    assert not (tmp_path / "named" / "engines.json").exists()


def test_an_engine_that_answers_with_nan_is_refused(run, tmp_path, monkeypatch):
    run_all = workshop.run_all

    def spoil(engine, images):
        logits = run_all(engine, images).copy()
        logits[0, 0] = np.nan if engine.kind.name == "openvino" else logits[0, 0]
        return logits

    monkeypatch.setattr(workshop, "run_all", spoil)
    with pytest.raises(ArchiveError, match="engine openvino is refused: it answers with NaN or infinity; on 5 of 5"):
        build_engines(run, stage(run, tmp_path / "tree"), wanted=["openvino"])


def test_a_network_that_cannot_be_exported_leaves_the_engine_out_and_says_why(run, tmp_path, monkeypatch):
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("no such operator\nin ONNX")

    monkeypatch.setattr(export.torch.onnx, "export", fail)
    reason = "simple_cnn cannot be exported to ONNX: no such operator; leave ONNX out"
    records = build_engines(run, stage(run, tmp_path / "tree"), wanted=["auto"])
    assert [(record.engine, record.reason) for record in records[1:]] == [(name, reason) for name in BUILT]
    with pytest.raises(ArchiveError, match=f"engine openvino is refused: {reason}; nothing was written"):
        build_engines(run, stage(run, tmp_path / "named"), wanted=["openvino"])


def test_without_a_compiler_the_compiled_engine_says_what_to_install(run, tmp_path):
    """In a process of its own, as a build is one: what Inductor imports does not get on with all that tests import."""
    command = [sys.executable, "-m", "imgcls.cli.main", "archive", "build", run, "--store", tmp_path / "store"]
    result = subprocess.run(
        [*command, "--engines", "compiled"],
        env=os.environ | {"PATH": str(tmp_path)},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1
    assert re.search(r"there is no C\+\+ compiler .* here, which AOTInductor needs; install", result.stderr)


@pytest.mark.parametrize("name", ["openvin", "int8", "Eager"])
def test_an_unknown_engine_is_a_usage_error(name):
    with pytest.raises(UsageError, match=f"--engines: engine is '{name}'; expected auto or one of openvino-int8"):
        parse_wanted(["eager", name], device="cpu")


def test_auto_builds_what_auto_could_pick_and_what_is_reproducible():
    kinds, named = parse_wanted(["auto", "compiled"], device="cpu")
    assert [kind.name for kind in kinds] == [*BUILT, "compiled"]
    assert named == {"compiled"}
    assert [kind.name for kind in parse_wanted(["auto"], device="cuda")[0]] == ["eager-fp16", "eager-bf16"]


def test_a_comparison_counts_what_it_says():
    reference = np.array([[4, 0, 0], [0, 4, 0], [1.01, 1, 0], [0, 0, 4]], np.float32)
    logits = np.array([[4, 0, 0], [0, 4, 0], [1, 1.01, 0], [4, 0, 0]], np.float32)
    labels = np.array([0, 1, 0, 2])
    compared = compare(logits, reference, Images("four", np.empty(0, np.uint8), labels), temperature=1)
    assert compared.largest_logit_difference == 4
    assert compared.top1_agreement == 0.5
    assert (compared.accuracy, compared.reference_accuracy) == (0.5, 1.0)
    probable, other = np.exp([4, 0]) / np.exp([4, 0, 0]).sum()
    near = 0.0042  # of the third, where two classes are as good as equal: it hardly counts
    assert compared.top1_loss == pytest.approx((probable - other + near) / 4, abs=1e-3)
    assert compared.probability_shift == pytest.approx((probable - other + near) / 4, abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({}, None),
        ({"probability_shift": 0.06}, "the probability of eager's best class moves by 0.0600, at most 0.0500"),
        ({"top1_loss": 0.02}, "its best class is less probable, as eager sees it, by 0.0200, at most 0.0100"),
        ({"accuracy": 0.88}, "its accuracy is lower by 0.0200, at most 0.0100"),
        ({"accuracy": 0.95}, None),
        ({"accuracy": 0.88, "images": 50}, None),  # one of 50
        ({"accuracy": None, "reference_accuracy": None}, None),
        ({"largest_logit_difference": 99.0, "top1_agreement": 0.5}, None),  # near ties, of which top1_loss tells
    ],
)
def test_a_tolerance_is_kept_in_probability_and_accuracy(fields, fault):
    comparison = Comparison(
        **{
            "compared_on": "some",
            "images": 1000,
            "largest_logit_difference": 1.0,
            "top1_agreement": 1.0,
            "top1_loss": 0.0,
            "probability_shift": 0.0,
            "accuracy": 0.9,
            "reference_accuracy": 0.9,
        }
        | fields
    )
    found = find_fault(comparison, TOLERANCES["int8"])
    assert (found is None) if fault is None else found.startswith(fault)
