"""Judges what TorchServe would load: the manifest, the handler it names, and modules that would stand before others."""

import json
import sys
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from typing import Any

from imgcls.archive.contents import MANIFEST
from imgcls.archive.scanning.findings import Finding
from imgcls.archive.scanning.rules import find

MAX_MANIFEST_BYTES = 1 << 20
# Modules of ts.torch_handler in TorchServe 0.12.0, which its loader tries after the archive's own.
BUILT_IN_HANDLERS = frozenset(
    (
        *("base_handler", "dali_handler", "dali_image_classifier", "densenet_handler", "image_classifier"),
        *("image_segmenter", "object_detector", "text_classifier", "text_handler", "trt_llm_handler"),
        *("vision_handler", "vllm_handler"),
    )
)
_FILES = ("serializedFile", "modelFile", "requirementsFile", "configFile")
# What a worker, or the code of an archive of ours, imports after the archive's folder has come onto its path.
_NEEDED_MODULES = sys.stdlib_module_names | {
    *("numpy", "packaging", "PIL", "psutil", "torch", "torchvision", "ts", "yaml"),
    *(
        "captum",
        "cryptography",
        "model_signing",
        "nvidia",
        "onnxruntime",
        "openvino",
        "safetensors",
        "timm",
    ),
    # pydantic's own needs too: it is imported before the worker checks the archive, and torch has not imported them
    *("annotated_types", "pydantic", "pydantic_core", "typing_extensions", "typing_inspection"),
}


def check_manifest(manifest: bytes | None, names: Collection[str]) -> Iterator[Finding]:
    """Judges the manifest's content, None where there is none, against the names of the archive's files."""
    if manifest is None:
        yield find("missing-manifest", MANIFEST)
        return
    try:
        fields = json.loads(manifest)
        if "workflow" in fields:
            yield find("workflow-archive", MANIFEST)
            return
        model = fields["model"]
        handler = model["handler"]
        if not isinstance(handler, str) or not isinstance(model["modelName"], str):
            raise TypeError("the handler or the model's name is no text")
    except (ValueError, LookupError, TypeError, RecursionError) as err:
        yield find("broken-manifest", MANIFEST, f"{type(err).__name__}: {err}")
        return
    if not _is_handler_known(handler, names):
        yield find("foreign-handler", MANIFEST, handler)
    yield from _check_files(model, names)


def check_shadowing(names: Collection[str]) -> Iterator[Finding]:
    """Finds modules at the archive's root, which is on a worker's path, under the name of one that others need."""
    for name in names:
        parts = PurePosixPath(name).parts
        is_module = parts and (len(parts) == 1 or (len(parts) == 2 and parts[1] == "__init__.py"))
        if is_module and name.endswith((".py", ".so", ".pyc")) and parts[0].partition(".")[0] in _NEEDED_MODULES:
            yield find("shadowed-module", name)


def _is_handler_known(handler: str, names: Collection[str]) -> bool:
    """Looks for the module as TorchServe does: without its function, its ending, and the folders before it."""
    module = handler.partition(":")[0].removesuffix(".py").rpartition("/")[2]
    path = module.replace(".", "/")
    return module in BUILT_IN_HANDLERS or f"{path}.py" in names or f"{path}/__init__.py" in names


def _check_files(model: dict[str, Any], names: Collection[str]) -> Iterator[Finding]:
    for key in _FILES:
        file = model.get(key)
        if isinstance(file, str) and file and PurePosixPath(file).name not in names and file not in names:
            yield find("missing-file", MANIFEST, f"{key} is {file}")
        elif isinstance(file, str) and file and key == "requirementsFile":
            yield find("requirements", PurePosixPath(file).name)  # whatever it is called
