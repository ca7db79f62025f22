"""The workshop of one archive's engines: makes their files, and compares each with eager on real images.

    weights ─► eager ─► fp32.onnx ─► int8.onnx        calibrated on the run's training images
                 │          └────────────┴───────► onnxruntime, openvino
                 └─► compiled.pt2                 compared on its validation images

ONNX Runtime and OpenVINO read the same two files; openvino-bf16 computes fp32.onnx in bfloat16.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from handler.integrity import hash_file
from imgcls.archive.export import compile_package, export_onnx, quantise_onnx
from imgcls.archive.parity import (
    TOLERANCES,
    Images,
    compare,
    decode_golden,
    find_fault,
    load_split,
    read_golden,
    run_all,
)
from imgcls.errors import ImgclsError
from model.classifier import softmax
from model.engines.choose import load_engine
from model.engines.eager import PixelNetwork, load_pixel_network
from model.engines.engine import Engine, Logits
from model.engines.kinds import KINDS, REFERENCE, EngineKind
from model.engines.records import ENGINES_FOLDER, Comparison, EngineRecord, Tolerance
from model.errors import ModelError
from model.golden import EXPECTED_FILE, GOLDEN_FOLDER, GoldenAnswer, GoldenItem
from model.spec import SPEC_FILE, WEIGHTS_FILE, ModelSpec, read_spec

CALIBRATION_IMAGES = 128
COMPARED_IMAGES = 500

OnProgress = Callable[[str], None]


@dataclass(frozen=True)
class Made:
    """An engine with its file; how near it is to eager, and what is wrong with it, if anything."""

    file: Path
    engine: Engine
    comparison: Comparison | None
    fault: str | None
    note: str = ""  # how it was made, where not as usual


@dataclass
class Workshop:
    """Where the engines of one archive are made; what several of them need is made once."""

    run: Path
    folder: Path
    scratch: Path
    device: str
    on_progress: OnProgress
    answers: dict[str, list[GoldenAnswer]] = field(default_factory=dict)

    def build(self, kind: EngineKind) -> EngineRecord:
        """Builds, loads and compares one engine; where that fails, the record says why."""
        self.on_progress(f"engine {kind.name}")
        device = self.device if self.device in kind.devices else "cpu"
        tolerance = TOLERANCES[kind.precision]
        try:
            made = self._make(kind, device=device, tolerance=tolerance)
        except (ImgclsError, ModelError, ModuleNotFoundError) as err:
            self.on_progress(f"warning: engine {kind.name} is left out: {err}")
            return EngineRecord(engine=kind.name, device=device, tolerance=tolerance, status="refused", reason=str(err))
        if made.fault:
            self.on_progress(f"warning: engine {kind.name} is left out: {made.fault}")
        else:
            self.answers[kind.name] = self._answer_golden(made.engine, tolerance=tolerance.golden)
        is_file_new = made.file.name != WEIGHTS_FILE
        return EngineRecord(
            engine=kind.name,
            device="cuda" if device == "cuda" else "cpu",
            file=None if made.fault else f"{ENGINES_FOLDER}/{made.file.name}" if is_file_new else WEIGHTS_FILE,
            sha256=hash_file(made.file) if is_file_new and not made.fault else None,
            reproducible=kind.runtime != "compiled",
            built_with=describe_tools(kind, made.engine),
            calibrated_on=self.calibration.text if kind.precision == "int8" else None,
            tolerance=tolerance,
            comparison=made.comparison,
            status="refused" if made.fault else "accepted",
            reason=made.fault or f"within its tolerance on {self.compared.text}{made.note}",
        )

    def pack(self, records: Sequence[EngineRecord]) -> None:
        """Copies the files of the accepted engines into the archive, and writes their golden answers."""
        for file in sorted({record.file for record in records if record.file and record.sha256}):
            (self.folder / ENGINES_FOLDER).mkdir(exist_ok=True)
            shutil.copyfile(self.scratch / Path(file).name, self.folder / file)
        items = [
            item.model_copy(update={"engines": {name: answers[place] for name, answers in self.answers.items()}})
            for place, item in enumerate(self.golden)
        ]
        text = json.dumps([item.model_dump() for item in items], indent=1, ensure_ascii=False)
        (self.folder / GOLDEN_FOLDER / EXPECTED_FILE).write_text(text + "\n", encoding="utf-8")

    def _make(self, kind: EngineKind, *, device: str, tolerance: Tolerance) -> Made:
        """Makes an engine; what is compiled with frozen weights and answers wrong is compiled once more without."""
        made = self._judge(self._make_file(kind, device=device), kind, device=device, tolerance=tolerance)
        if made.fault and kind.runtime == "compiled":
            file = self._make_file(kind, device=device, is_frozen=False)
            note = f"; its weights are not frozen, as with that {made.fault}"
            made = replace(self._judge(file, kind, device=device, tolerance=tolerance), note=note)
        return made

    def _judge(self, file: Path, kind: EngineKind, *, device: str, tolerance: Tolerance) -> Made:
        engine = load_engine(file, self.spec, kind=kind, device=device)
        logits = run_all(engine, self.compared)
        if not np.isfinite(logits).all():
            return Made(file, engine, None, f"it answers with NaN or infinity; on {self.compared.text}")
        comparison = compare(logits, self.reference, self.compared, temperature=self.spec.temperature)
        return Made(file, engine, comparison, find_fault(comparison, tolerance))

    def _make_file(self, kind: EngineKind, *, device: str, is_frozen: bool = True) -> Path:
        if kind.runtime in ("onnxruntime", "openvino"):
            return self.int8_onnx if kind.precision == "int8" else self.fp32_onnx
        if kind.runtime != "compiled":
            return self.run / WEIGHTS_FILE
        target = self.scratch / f"{kind.name}.pt2"
        compile_package(self._load_network(kind), self.spec, target, device=device, is_frozen=is_frozen)
        return target

    def _load_network(self, kind: EngineKind) -> PixelNetwork:
        # In the plain layout: torch 2.15 compiled simple_cnn in channels_last, with frozen weights, to wrong answers.
        weights = self.run / WEIGHTS_FILE
        return load_pixel_network(weights, self.spec, kind=kind, layout=torch.contiguous_format)

    def _answer_golden(self, engine: Engine, *, tolerance: float) -> list[GoldenAnswer]:
        logits = engine.run(decode_golden(self.golden, self.spec).pixels)
        rows = softmax(logits, temperature=self.spec.temperature)
        return [
            GoldenAnswer(probability=round(float(row[item.index]), 6), tolerance=tolerance)
            for item, row in zip(self.golden, rows, strict=True)
        ]

    @cached_property
    def spec(self) -> ModelSpec:
        """The run's."""
        return read_spec(self.run / SPEC_FILE)

    @cached_property
    def golden(self) -> tuple[GoldenItem, ...]:
        """The archive's golden inputs."""
        return read_golden(self.folder)

    @cached_property
    def calibration(self) -> Images:
        """Training images; without them golden ones."""
        return self._load("train", limit=CALIBRATION_IMAGES)

    @cached_property
    def compared(self) -> Images:
        """Validation images; without them golden ones."""
        return self._load("val", limit=COMPARED_IMAGES)

    def _load(self, split: str, *, limit: int) -> Images:
        def warn(reason: str) -> None:
            self.on_progress(f"warning: golden images stand in for those of {split}: {reason}")

        images = load_split(self.run, self.spec, split=split, limit=limit, on_problem=warn)
        return images or decode_golden(self.golden, self.spec)

    @cached_property
    def reference(self) -> Logits:
        """Eager's logits of the compared images."""
        eager = load_engine(self.run / WEIGHTS_FILE, self.spec, kind=KINDS[REFERENCE], device=self.device)
        return run_all(eager, self.compared)

    @cached_property
    def fp32_onnx(self) -> Path:
        """The network as ONNX."""
        target = self.scratch / "fp32.onnx"
        export_onnx(self._load_network(KINDS[REFERENCE]), self.spec, target)
        return target

    @cached_property
    def int8_onnx(self) -> Path:
        """The network as ONNX in int8."""
        target = self.scratch / "int8.onnx"
        quantise_onnx(self.fp32_onnx, target, pixels=self.calibration.pixels)
        return target


def describe_tools(kind: EngineKind, engine: Engine) -> str:
    """Returns the packages that made an engine's file, and the runtime that it was compared in."""
    tools = {"onnxruntime": ("torch", "onnx"), "openvino": ("torch", "onnx")}.get(kind.runtime, ())
    quantiser = ("onnxruntime",) if kind.runtime == "openvino" and kind.precision == "int8" else ()
    return ", ".join([*(f"{name} {version(name)}" for name in (*tools, *quantiser)), engine.version()])
