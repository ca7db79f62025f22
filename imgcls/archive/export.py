"""Makes the files of an archive's engines: ONNX in float32 and int8, and packages of machine code.

Each carries the normalisation in its graph, so that it takes uint8 pixels, and has a dynamic batch. ONNX models are the
same bytes whenever they are made from the same weights: what the tools add of source lines and paths is removed.
"""

import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import Dim, export

from imgcls.errors import ArchiveError
from model.engines.compiled import LARGEST_BATCH, TORCH_KEY
from model.engines.eager import PixelNetwork
from model.engines.engine import Pixels
from model.engines.onnx_runtime import import_onnxruntime
from model.spec import ModelSpec

INPUT, OUTPUT = "pixels", "logits"
_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")  # what the quantiser looks for
_MARCH = {"AVX512": "x86-64-v4", "AVX2": "x86-64-v3"}  # by torch's word for what it found here


def export_onnx(network: PixelNetwork, spec: ModelSpec, target: Path) -> None:
    """Writes a network as ONNX, batch norms folded into the convolutions before them.

    Raises:
        ArchiveError: the network has what ONNX cannot express.
    """
    batch = {0: Dim("batch", min=1, max=LARGEST_BATCH)}
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                (_example(spec),),
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=(batch,),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        model = program.model_proto
    except Exception as err:  # torch's exporter raises anything
        raise ArchiveError(f"{spec.network} cannot be exported to ONNX: {_first_line(err)}; leave ONNX out") from err
    write_onnx(model, target)


def quantise_onnx(source: Path, target: Path, *, pixels: Pixels) -> None:
    """Writes an ONNX model in int8, with ONNX Runtime's static quantisation.

    Weights are int8 a channel, activations uint8 with the ranges that the calibration images give: with uint8 both
    runtimes use the processor's int8 instructions; with int8 activations ONNX Runtime 1.32 was no faster than float32.

    Args:
        source: a model of `export_onnx`.
        target: the model to write.
        pixels: the calibration images, uint8 (N, C, H, W).

    Raises:
        ArchiveError: the quantiser refuses the model.
    """
    import_onnxruntime()  # first, as it keeps ONNX Runtime silent
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._images = iter(pixels)

        def get_next(self) -> dict[str, Pixels] | None:
            image = next(self._images, None)
            return None if image is None else {INPUT: image[None]}

    model = onnx.load(source)
    model.metadata_props.add(key=_PREPARED[0], value=_PREPARED[1])  # the export has folded and inferred everything
    try:
        with _quiet():
            quantize_static(
                model,
                target,
                Images(),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                reduce_range=True,  # 7 bits; with 8, AVX2's int8 products saturate
            )
    except Exception as err:  # as is the quantiser's way
        raise ArchiveError(f"the network cannot be quantised: {_first_line(err)}; leave int8 out") from err
    write_onnx(onnx.load(target), target)


def compile_package(
    network: PixelNetwork, spec: ModelSpec, target: Path, *, device: str, is_frozen: bool = True
) -> None:
    """Compiles a network for this kind of machine, weights inside, with AOTInductor.

    On x86 the code is for the level that torch found here (AVX2 or AVX-512) and not for this very processor. A package
    is not reproducible, and names folders of the machine that it was built on.

    Args:
        network: what to compile.
        spec: its spec.
        target: the package to write.
        device: "cpu" or "cuda".
        is_frozen: weights are folded and laid out for the processor beforehand; faster, and in torch 2.15 wrong for
            some networks, such as whitened_cnn with 6 views of one channel.

    Raises:
        ArchiveError: there is no C++ compiler, or the network cannot be compiled.
    """
    refuse_missing_compiler()
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.utils import fresh_cache

    batch = {0: Dim("batch", min=1, max=LARGEST_BATCH)}
    options: dict[str, Any] = {"freezing": is_frozen, "aot_inductor.metadata": {TORCH_KEY: torch.__version__}}
    if march := _MARCH.get(torch.backends.cpu.get_cpu_capability()):
        options["cpp.march"] = march
    try:
        with _quiet(), fresh_cache(), torch.no_grad():
            program = export(network.to(device), (_example(spec).to(device),), dynamic_shapes=(batch,))
            aoti_compile_and_package(program, package_path=str(target.absolute()), inductor_configs=options)
    except Exception as err:  # as is the compiler's way
        raise ArchiveError(
            f"{spec.network} cannot be compiled: {_first_line(err)}; leave the compiled engine out"
        ) from err


def refuse_missing_compiler() -> None:
    """Raises ArchiveError where there is no C++ compiler that AOTInductor can use."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        compiler = get_cpp_compiler()
    except RuntimeError:
        compiler = ""
    if not compiler or shutil.which(compiler) is None:
        wanted = "clang++" if sys.platform == "darwin" else "g++"
        raise ArchiveError(
            f"engine compiled: there is no C++ compiler {compiler or wanted} here, which AOTInductor needs; install "
            f"{wanted}, name another one in CXX, or leave the compiled engine out"
        )


def write_onnx(model: Any, target: Path) -> None:
    """Writes an ONNX model without what differs between two exports of the same network, or tells of this machine."""
    model.producer_name, model.producer_version, model.doc_string = "imgcls", "", ""
    graph = model.graph
    graph.doc_string = ""
    parts = [*graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for part in (model, graph, *parts):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    target.write_bytes(model.SerializeToString(deterministic=True))


def _example(spec: ModelSpec) -> torch.Tensor:
    # Of two images, as export takes a batch of one for a fixed size.
    return torch.from_numpy(np.zeros((2, spec.channels, spec.size, spec.size), np.uint8))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the tools' warnings about their own insides from the user."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
