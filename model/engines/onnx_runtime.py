"""ONNX Runtime: an exported network, float32 or int8, on the CPU."""

import os
from pathlib import Path
from typing import Any, Self

from model.engines.engine import Engine, Logits, Pixels, describe_failure, refuse_missing
from model.engines.kinds import EngineKind
from model.errors import EngineError
from model.spec import ModelSpec

_ONLY_ERRORS = 3


class OnnxRuntimeEngine(Engine):
    """Runs an ONNX model; its batch is dynamic."""

    def __init__(self, session: Any, spec: ModelSpec, *, kind: EngineKind) -> None:
        super().__init__(kind, spec, device="cpu")
        self._session = session
        self._input = session.get_inputs()[0].name

    @classmethod
    def load(cls, file: Path, spec: ModelSpec, *, kind: EngineKind, device: str, threads: int | None = None) -> Self:
        """Loads an ONNX model; see Engine.load."""
        onnxruntime = import_onnxruntime()
        refuse_missing(file, kind=kind)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0  # 0: one a core
        options.inter_op_num_threads = 1
        options.log_severity_level = _ONLY_ERRORS
        # Threads that spin while they wait take the cores from the other workers.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        except Exception as err:  # as in describe_failure
            raise EngineError(describe_failure(kind, f"{file.name} cannot be loaded", err)) from err
        return cls(session, spec, kind=kind)

    def run(self, pixels: Pixels) -> Logits:
        """uint8 (B, C, H, W) -> float32 logits (B, classes)."""
        logits: Logits = self._session.run(None, {self._input: pixels})[0]
        return logits

    def count_threads(self) -> int:
        """Returns the threads of the session; 0 where ONNX Runtime chooses."""
        return int(self._session.get_session_options().intra_op_num_threads)

    @classmethod
    def version(cls) -> str:
        """Returns "onnxruntime" and its version."""
        return f"onnxruntime {import_onnxruntime().__version__}"


def import_onnxruntime() -> Any:
    """Imports ONNX Runtime without its telemetry.

    As it comes, since 1.29 also on Linux, it reports processor, memory, models and the program's path to Microsoft, and
    writes an identifier into ~/.cache. Its switch is read once, by the import; its own function comes too late.
    """
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    return onnxruntime
