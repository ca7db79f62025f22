"""The Open Inference Protocol (KServe's v2): requests in JSON, and the tensors that answer them.

Specification: https://github.com/kserve/open-inference-protocol, inference_rest.md. Images come as one BYTES tensor of
base64 strings, each an image file. Numeric tensors are refused: preprocessing has one definition, and it starts at a
file.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from handler.errors import Failure, NotOfferedError, RequestError, UnsupportedTensorError
from handler.options import find_options
from handler.sources import JsonImage

OUTPUTS = ("labels", "indices", "probabilities", "status", "error")
LARGEST_RANK = 8
OK = 200


def read_tensors(body: Mapping[str, Any]) -> list[JsonImage]:
    """Returns the images of the one tensor that a request holds.

    Raises:
        RequestError: there is not one tensor, or its shape and data disagree.
        UnsupportedTensorError: its datatype is not BYTES.
    """
    inputs = body["inputs"]
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        got = f"{len(inputs)} tensors" if isinstance(inputs, list) else type(inputs).__name__
        raise RequestError(f"inputs holds {got}; expected one tensor with all images, as an object in a list")
    [tensor] = inputs
    datatype = tensor.get("datatype")
    if datatype != "BYTES":
        raise UnsupportedTensorError(
            f"inputs[0].datatype is {str(datatype)[:40]!r}; expected 'BYTES', with the base64 of an image file each"
        )
    if "data" not in tensor:
        raise NotOfferedError("inputs[0] has no data; the binary extension is not offered, send base64 in JSON")
    shape = tensor.get("shape")
    if not isinstance(shape, list) or not 0 < len(shape) <= LARGEST_RANK or not all(map(_is_length, shape)):
        raise RequestError(f"inputs[0].shape is {str(shape)[:40]}; expected a list such as [2], for two images")
    values = tensor["data"] if isinstance(tensor["data"], list) else [tensor["data"]]
    if any(isinstance(value, list) for value in values):
        values = _unnest(values, shape)
    if len(values) != math.prod(shape):
        raise RequestError(f"inputs[0].data holds {len(values)} images; expected {math.prod(shape)}, by its shape")
    return [JsonImage(value) for value in values]


def _unnest(data: list[Any], shape: Sequence[int]) -> list[Any]:
    """Returns the values of nested lists in their order.

    Raises:
        RequestError: they are not nested as the shape says.
    """
    lists: list[Any] = [data]
    for length in shape:
        if any(not isinstance(each, list) or len(each) != length for each in lists):
            raise RequestError(f"inputs[0].data is not nested as its shape {str(list(shape))[:40]} says; send it flat")
        lists = [value for each in lists for value in each]
    return lists


def read_id(body: Mapping[str, Any]) -> str | None:
    """Returns the request's id, or None.

    Raises:
        RequestError: it is no string.
    """
    if not isinstance(request_id := body.get("id"), str | None):
        raise RequestError(f"id is {type(request_id).__name__}; expected a string")
    return request_id


def read_parameters(fields: Mapping[str, Any], *, of: str = "") -> dict[str, Any] | None:
    """Returns the `parameters` of a request, a tensor or a wanted output.

    Args:
        fields: the object that may have them.
        of: where that stands, for an error.

    Raises:
        RequestError: they are no object.
    """
    if not isinstance(parameters := fields.get("parameters"), dict | None):
        raise RequestError(f'{of}parameters is {type(parameters).__name__}; expected an object such as {{"top_k": 3}}')
    return parameters


def read_outputs(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of the tensors to answer with; all where the request names none.

    Raises:
        RequestError: one is unknown, or has options of its own: the outputs are columns of the same answer.
    """
    wanted = body.get("outputs") or [{"name": name} for name in OUTPUTS]
    entries = wanted if isinstance(wanted, list) else []
    names = [str(entry.get("name")) for entry in entries if isinstance(entry, dict)]
    if not names or len(names) < len(entries) or any(name not in OUTPUTS for name in names):
        raise RequestError(f'outputs is {str(wanted)[:80]}; expected a list of {{"name": …}} of {", ".join(OUTPUTS)}')
    for index, entry in enumerate(entries):
        if found := find_options(read_parameters(entry, of=f"outputs[{index}].")):
            place = f"outputs[{index}].parameters"
            raise RequestError(f"{place} has {', '.join(found)}; options stand in the parameters of the request")
    return tuple(names)


def write_outputs(results: Sequence[Mapping[str, Any] | Failure], *, names: Sequence[str]) -> list[dict[str, Any]]:
    """Returns the output tensors: a row an image; of one that failed it is blank, and `status` and `error` say why.

    Args:
        results: of each image, its ranked `predictions` or its error.
        names: of the tensors asked for; `status` and `error` come unasked where an image has failed.
    """
    ranked = [[] if isinstance(result, Failure) else result["predictions"] for result in results]
    failures = [result if isinstance(result, Failure) else None for result in results]
    columns = max(map(len, ranked))
    blank = {"label": "", "index": -1, "probability": 0.0}
    cells = [line for lines in ranked for line in [*lines, *[blank] * (columns - len(lines))]]
    tensors: dict[str, tuple[str, list[int], list[Any]]] = {
        "labels": ("BYTES", [len(results), columns], [line["label"] for line in cells]),
        "indices": ("INT64", [len(results), columns], [line["index"] for line in cells]),
        "probabilities": ("FP32", [len(results), columns], [line["probability"] for line in cells]),
        "status": ("INT64", [len(results)], [failure.status if failure else OK for failure in failures]),
        "error": ("BYTES", [len(results)], [describe_failure(failure) if failure else "" for failure in failures]),
    }
    if any(failures):
        names = [*names, "status", "error"]
    return [
        {"name": name, "datatype": tensors[name][0], "shape": tensors[name][1], "data": tensors[name][2]}
        for name in dict.fromkeys(names)
    ]


def describe_failure(failure: Failure) -> str:
    """Returns an error as the one string that the protocol has for it."""
    return f"{failure.code}: {failure}"


def _is_length(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63
