"""Which kinds of engine there are, in the order in which a worker prefers them. No torch, no numpy."""

import difflib
from dataclasses import dataclass
from typing import Literal

from model.errors import EngineError

Runtime = Literal["eager", "compiled", "torch-compile", "onnxruntime", "openvino"]
Precision = Literal["fp32", "bf16", "fp16", "int8"]

AUTO = "auto"
REFERENCE = "eager"


@dataclass(frozen=True)
class EngineKind:
    """A runtime at a precision; `devices` is where it runs, `auto` where `engine: auto` may take it."""

    runtime: Runtime
    precision: Precision
    devices: tuple[str, ...]
    auto: tuple[str, ...]

    @property
    def name(self) -> str:
        """What configuration and records call it: the runtime, and the precision unless that is fp32."""
        return self.runtime if self.precision == "fp32" else f"{self.runtime}-{self.precision}"


# In the order in which `auto` tries them: int8 before half before float32, and of two the one that was faster.
# ResNet-18 at 224 px, one thread, one image: 7.0, 8.8, 25.8, 25.1, 31.2, 36.9 ms; eight: 5.9, 7.3, 23.2, 23.7, 23.6,
# 29.3 ms an image (CPU kinds in this order but for bf16; 2-core Xeon with AVX-512 VNNI, 2026-11-23). With AMX
# openvino's three: 4.8, 6.5, 29.8; eight: 2.8, 4.4, 26.8 ms (2026-11-28). Unmeasured: a GPU's order, bf16 without AMX.
KINDS = {
    kind.name: kind
    for kind in (
        EngineKind("openvino", "int8", devices=("cpu",), auto=("cpu",)),
        EngineKind("onnxruntime", "int8", devices=("cpu",), auto=("cpu",)),
        EngineKind("compiled", "fp16", devices=("cpu", "cuda"), auto=("cuda",)),
        EngineKind("compiled", "bf16", devices=("cpu", "cuda"), auto=("cuda",)),
        EngineKind("eager", "fp16", devices=("cpu", "cuda"), auto=("cuda",)),
        EngineKind("eager", "bf16", devices=("cpu", "cuda"), auto=("cuda",)),
        EngineKind("openvino", "bf16", devices=("cpu",), auto=("cpu",)),
        EngineKind("openvino", "fp32", devices=("cpu",), auto=("cpu",)),
        EngineKind("onnxruntime", "fp32", devices=("cpu",), auto=("cpu",)),
        EngineKind("compiled", "fp32", devices=("cpu", "cuda"), auto=("cpu", "cuda")),
        EngineKind("torch-compile", "fp32", devices=("cpu", "cuda"), auto=()),  # compiles for a minute at each start
        EngineKind("eager", "fp32", devices=("cpu", "cuda"), auto=("cpu", "cuda")),
    )
}


def parse_kind(name: str) -> EngineKind:
    """Returns the kind of that name.

    Raises:
        EngineError: there is none.
    """
    if name not in KINDS:
        near = difflib.get_close_matches(name, KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise EngineError(f"engine is {name!r}; expected {AUTO} or one of {', '.join(KINDS)}{hint}")
    return KINDS[name]
