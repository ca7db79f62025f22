import platform
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from imgcls.archive.engines import build_engines
from imgcls.archive.export import compile_package, refuse_missing_compiler
from imgcls.archive.make_golden import write_golden
from imgcls.errors import ArchiveError
from model.engines.choose import load_engine
from model.engines.compiled import LARGEST_BATCH
from model.engines.eager import load_pixel_network
from model.engines.engine import Engine
from model.engines.kinds import KINDS, parse_kind
from model.errors import EngineError
from model.network import build_network
from model.spec import ModelSpec, dump_spec

SPEC = ModelSpec(
    parameters={"widths": [8, 8], "hidden": 16, "norm": "batch"},
    size=16,
    resize=16,
    mean=(0.4, 0.5, 0.6),
    std=(0.2, 0.25, 0.3),
    classes=("a", "b", "c", "d"),
)
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), dtype=np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights, and their packages in float32 (twice) and bfloat16."""
    try:
        refuse_missing_compiler()
    except ArchiveError as err:
        pytest.skip(str(err))
    folder = tmp_path_factory.mktemp("compiled")
    torch.manual_seed(0)
    save_file(build_network(SPEC).state_dict(), folder / "weights.safetensors")
    for name, file in (("compiled", "one.pt2"), ("compiled", "other.pt2"), ("compiled-bf16", "half.pt2")):
        network = load_pixel_network(
            folder / "weights.safetensors", SPEC, kind=parse_kind(name), layout=torch.contiguous_format
        )
        compile_package(network, SPEC, folder / file, device="cpu")
    return folder


def load(folder: Path, file: str, name: str = "compiled") -> Engine:
    return load_engine(folder / file, SPEC, kind=parse_kind(name), device="cpu", threads=1)


def test_a_package_answers_as_eager_does_in_any_batch(folder):
    expected = load(folder, "weights.safetensors", "eager").run(PIXELS)
    for name, file, tolerance in (("compiled", "one.pt2", 1e-4), ("compiled-bf16", "half.pt2", 0.05)):
        engine = load(folder, file, name)
        engine.warm_up(batch_sizes=(1, 2))
        assert (engine.describe()["engine"], engine.count_threads()) == (name, 1)
        for size in range(1, 6):
            logits = engine.run(PIXELS[:size])
            assert (logits.shape, logits.dtype) == ((size, 4), np.float32)
            assert np.abs(logits - expected[:size]).max() < tolerance


def test_a_package_is_not_reproducible_as_the_record_says(folder):
    assert (folder / "one.pt2").read_bytes() != (folder / "other.pt2").read_bytes()


def test_pixels_of_another_shape_are_refused(folder):
    engine = load(folder, "one.pt2")
    for shape in ((1, 3, 16, 17), (1, 1, 16, 16), (LARGEST_BATCH + 1, 3, 16, 16)):
        with pytest.raises(EngineError, match="engine compiled: got pixels of shape"):
            engine.run(np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
    ("built", "other", "message"),
    [
        (platform.machine(), "m68k", rf"was built for m68k \(here {platform.machine()}\)"),
        (torch.__version__, "1.0", r"was built for 1\.0 \(here"),
        ('"cpu"', '"cuda"', r"was built for cuda \(here cpu\)"),
        ('"AOTI_CPU_ISA": "', '"AOTI_CPU_ISA": "AMX_FP16 ', r"was built for AMX_FP16 \(not here\)"),
    ],
)
def test_a_package_for_another_machine_is_refused_before_it_is_loaded(folder, tmp_path, built, other, message):
    if "AMX_FP16" in other and torch.cpu._is_amx_fp16_supported():
        pytest.skip("this processor has it")
    with zipfile.ZipFile(folder / "one.pt2") as source, zipfile.ZipFile(tmp_path / "x.pt2", "w") as target:
        for entry in source.infolist():
            data = source.read(entry)
            is_metadata = entry.filename.endswith("_metadata.json")
            target.writestr(entry, data.replace(built.encode(), other.encode()) if is_metadata else data)
    with pytest.raises(EngineError, match=f"engine compiled: x.pt2 {message}.*; build the archive on a machine of"):
        load(tmp_path, "x.pt2")


def test_torch_compile_answers_as_eager_does(folder):
    expected = load(folder, "weights.safetensors", "eager").run(PIXELS)
    engine = load(folder, "weights.safetensors", "torch-compile")
    for size in (2, 1, 5):
        assert np.abs(engine.run(PIXELS[:size]) - expected[:size]).max() < 1e-4
    assert KINDS["torch-compile"].auto == ()


def test_what_frozen_weights_make_wrong_is_compiled_without(folder, tmp_path):
    """Where this fails as the weights are frozen and right, torch has mended it: is_frozen is needed no more."""
    run, tree = tmp_path / "run", tmp_path / "tree"
    run.mkdir()
    tree.mkdir()
    spec = ModelSpec(
        network="whitened_cnn",
        parameters={"widths": [4], "views": 6},
        channels=1,
        size=8,
        resize=8,
        mean=(0.5,),
        std=(0.1,),
        classes=("a", "b", "c"),
    )
    torch.manual_seed(0)
    network = build_network(spec)
    network.classifier.weight.data *= 20  # as sure as a trained one
    save_file(network.state_dict(), run / "weights.safetensors")
    (run / "spec.yaml").write_text(dump_spec(spec), encoding="utf-8")
    (run / "index_to_name.json").write_text('{"0": "a", "1": "b", "2": "c"}', encoding="utf-8")
    write_golden(run, tree)
    eager, record = build_engines(run, tree, wanted=["compiled"])
    assert (record.status, record.comparison.images) == ("accepted", 1)
    assert "its weights are not frozen, as with that" in record.reason
    pixels = np.random.default_rng(0).integers(0, 256, (5, 1, 8, 8), dtype=np.uint8)
    answers = [
        load_engine(file, spec, kind=KINDS[name], device="cpu", threads=1).run(pixels)
        for name, file in ((eager.engine, run / "weights.safetensors"), (record.engine, tree / record.file))
    ]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-5)
