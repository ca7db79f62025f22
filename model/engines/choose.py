"""Picks the engine of a worker: the one that its configuration names, or the best that the archive accepted.

A named engine is used or the worker does not start. `auto` goes down the order of `kinds.KINDS`; whatever it passes
over although the archive accepted it is a warning in the log and stays in the choice, for whoever asks later.
"""

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from model.engines.engine import Engine, describe_failure
from model.engines.kinds import AUTO, KINDS, REFERENCE, EngineKind, parse_kind
from model.engines.records import EngineRecord, read_records
from model.errors import EngineError, ModelError
from model.spec import WEIGHTS_FILE, ModelSpec

logger = logging.getLogger(__name__)

FROM_WEIGHTS = ("eager", "torch-compile")  # runtimes that need no file but the weights


@dataclass(frozen=True)
class Choice:
    """What was picked and why; `passed_over` says why better ones were not."""

    engine: Engine
    reason: str
    passed_over: tuple[str, ...] = ()


def choose_engine(
    folder: Path,
    spec: ModelSpec,
    *,
    wanted: str = AUTO,
    device: str = "cpu",
    threads: int | None = None,
    batch_sizes: Iterable[int] = (1,),
    check: Callable[[Engine], None] = lambda engine: None,
) -> Choice:
    """Loads, warms up and checks the engine of an unpacked archive.

    Args:
        folder: the archive.
        spec: of its network.
        wanted: "auto" or an engine's name.
        device: "cpu", "cuda" or "cuda:N".
        threads: that one batch may use.
        batch_sizes: to warm up.
        check: raises ModelError where the engine does not answer as it should on this machine.

    Raises:
        EngineError: engines.json cannot be read; the named engine is unknown, not in the archive or cannot be started.
        ModelError: the named engine, or of `auto` the last one left, is refused by the check, or its weights are.
    """
    accepted = {record.engine: record for record in read_records(folder) if record.is_accepted}
    batch_sizes = tuple(batch_sizes)

    def start(kind: EngineKind) -> Engine:
        file = folder / (accepted[kind.name].file or WEIGHTS_FILE if kind.name in accepted else WEIGHTS_FILE)
        try:
            engine = load_engine(file, spec, kind=kind, device=device, threads=threads)
            engine.warm_up(batch_sizes=batch_sizes)
            check(engine)
        except ModelError:
            raise
        except Exception as err:  # as in describe_failure
            raise EngineError(describe_failure(kind, "cannot be started", err)) from err
        return engine

    if wanted != AUTO:
        kind = parse_kind(wanted)
        refuse_unusable(kind, accepted=accepted, device=device)
        return Choice(start(kind), reason=f"model-config.yaml names {wanted}")
    kinds = list_candidates(accepted.values(), device=device)
    reason = f"auto: the first of {', '.join(kind.name for kind in kinds)}"
    passed_over: list[str] = []
    for kind in kinds[:-1]:
        try:
            return Choice(start(kind), reason + (" that starts here" if passed_over else ""), tuple(passed_over))
        except ModelError as err:
            logger.warning("passed over: %s", err)
            passed_over.append(str(err))
    return Choice(start(kinds[-1]), reason + (" that starts here" if passed_over else ""), tuple(passed_over))


def list_candidates(accepted: Iterable[EngineRecord], *, device: str) -> list[EngineKind]:
    """Returns what `auto` tries on a device, best first; eager, which every archive can do, is always the last."""
    family = device.partition(":")[0]
    packed = {record.engine for record in accepted if record.engine == REFERENCE or record.device == family}
    return [kind for kind in KINDS.values() if kind.name in packed | {REFERENCE} and family in kind.auto]


def refuse_unusable(kind: EngineKind, *, accepted: dict[str, EngineRecord], device: str) -> None:
    """Raises EngineError where an archive cannot offer an engine on a device."""
    family = device.partition(":")[0]
    if family not in kind.devices:
        raise EngineError(
            f"engine {kind.name} runs on {' and '.join(kind.devices)}, and this worker has {device}; set engine: auto, "
            "or deviceType: cpu"
        )
    if kind.runtime in FROM_WEIGHTS:
        return
    if kind.name not in accepted:
        offered = ", ".join(dict.fromkeys([*accepted, REFERENCE]))
        raise EngineError(
            f"engine {kind.name} is not in this archive, which offers {offered}; build it with --engines {kind.name}"
        )
    if accepted[kind.name].device != family:
        raise EngineError(
            f"engine {kind.name} of this archive was built for {accepted[kind.name].device}, and this worker has "
            f"{device}; build the archive on a machine with {family}, or set engine: auto"
        )


def load_engine(file: Path, spec: ModelSpec, *, kind: EngineKind, device: str, threads: int | None = None) -> Engine:
    """Loads one engine, and imports its runtime.

    Raises:
        EngineError: the runtime is not installed, or as in Engine.load.
        WeightsError: as in Engine.load.
    """
    try:
        return _find_class(kind).load(file, spec, kind=kind, device=device, threads=threads)
    except ModuleNotFoundError as err:
        raise EngineError(
            f"engine {kind.name}: the Python module {err.name!r} is not installed; install it on the server, or set "
            "engine: auto"
        ) from err


def _find_class(kind: EngineKind) -> type[Engine]:
    # Imported here, each for itself, because a worker must pay for one runtime only.
    if kind.runtime == "onnxruntime":
        from model.engines.onnx_runtime import OnnxRuntimeEngine

        return OnnxRuntimeEngine
    if kind.runtime == "openvino":
        from model.engines.open_vino import OpenVinoEngine

        return OpenVinoEngine
    if kind.runtime == "compiled":
        from model.engines.compiled import CompiledEngine

        return CompiledEngine
    if kind.runtime == "torch-compile":
        from model.engines.torch_compile import TorchCompileEngine

        return TorchCompileEngine
    from model.engines.eager import EagerEngine

    return EagerEngine
