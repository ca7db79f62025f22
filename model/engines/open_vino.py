"""OpenVINO on the CPU: the same ONNX models as ONNX Runtime's, float32 or int8, and the float32 one in bfloat16."""

import sys
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np

from model.engines.engine import Engine, Logits, Pixels, describe_failure, refuse_missing
from model.engines.kinds import EngineKind
from model.errors import EngineError
from model.spec import ModelSpec


class OpenVinoEngine(Engine):
    """Runs an ONNX model; its batch is dynamic, and a batch of a new size costs some milliseconds once."""

    def __init__(self, compiled: Any, spec: ModelSpec, *, kind: EngineKind) -> None:
        super().__init__(kind, spec, device="cpu")
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    @classmethod
    def load(cls, file: Path, spec: ModelSpec, *, kind: EngineKind, device: str, threads: int | None = None) -> Self:
        """Reads and compiles an ONNX model; see Engine.load."""
        refuse_missing(file, kind=kind)
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads or 0,  # 0: one a core; never more than there are cores
            "ENABLE_CPU_PINNING": False,  # pinned, all workers of a machine would share the first cores
            # The default is bfloat16 wherever the processor knows it.
            "INFERENCE_PRECISION_HINT": "bf16" if kind.precision == "bf16" else "f32",
        }
        try:
            core = open_core()
            if kind.precision == "bf16" and not has_bf16(core):
                raise EngineError(
                    f"engine {kind.name}: this processor has no bfloat16 instructions; auto takes another"
                )
            compiled = core.compile_model(core.read_model(str(file)), "CPU", options)
        except EngineError:
            raise
        except Exception as err:  # as in describe_failure
            raise EngineError(describe_failure(kind, f"{file.name} cannot be loaded", err)) from err
        return cls(compiled, spec, kind=kind)

    def run(self, pixels: Pixels) -> Logits:
        """uint8 (B, C, H, W) -> float32 logits (B, classes)."""
        result = self._request.infer([np.ascontiguousarray(pixels)], share_inputs=True, share_outputs=True)
        return np.array(result[0], dtype=np.float32)  # the request writes its next answer to the same place

    def count_threads(self) -> int:
        """Returns the threads that OpenVINO has taken."""
        return int(self._compiled.get_property("INFERENCE_NUM_THREADS"))

    @classmethod
    def version(cls) -> str:
        """Returns "openvino" and its version."""
        return f"openvino {import_openvino().__version__.split('-')[0]}"


def has_bf16(core: Any) -> bool:
    """Whether the processor has bfloat16 instructions; without, OpenVINO emulates them or computes in float32."""
    return "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")


@cache
def open_core() -> Any:
    """Returns OpenVINO's core, which is never let go of.

    Its CPU plugin gives the thread that loads it a stack for signals, as processors with AMX need, and takes the memory
    back when it goes (openvinotoolkit/openvino#11894). Where another thread lets go of it, the first one keeps the
    address, and the next signal with a handler, such as a child's end or SIGTERM, ends the process.
    """
    return import_openvino().Core()


def import_openvino() -> Any:
    """Imports OpenVINO without its telemetry and its model converter.

    As it comes, `import openvino` imports openvino.tools.ovc, which at once reports the import to Google Analytics from
    a child process, unless the user has opted out, and writes an identifier into ~/intel. A module that is None cannot
    be imported, and OpenVINO goes on without either of the two. That also halves the time and saves 13 MB.
    """
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    sys.modules.setdefault("openvino.tools.ovc", None)  # type: ignore[arg-type]
    import openvino

    return openvino
