"""Errors of the model package.

    ModelError
    ├── SpecError            a spec, its parameters or its labels cannot be used
    ├── WeightsError         weights do not fit the network that the spec describes
    ├── EngineError          an engine cannot be built, loaded or run here
    ├── NumericError         the network answered with NaN or infinity
    └── ImageError           one image cannot be classified; carries the HTTP status that says whose fault it is
        ├── EmptyImageError        400  no bytes
        ├── ImageTooLargeError     413  more pixels than allowed
        ├── UnsupportedImageError  415  not an image, or of a kind that has no defined preprocessing
        └── UndecodableImageError  422  a known format, but broken

Raised by model/, answered by handler/ one item at a time.
"""

from typing import ClassVar

from pydantic import ValidationError


class ModelError(Exception):
    """Anything that model/ refuses."""


class SpecError(ModelError):
    """A spec, its parameters or its labels cannot be used."""


class WeightsError(ModelError):
    """Weights do not fit the network that the spec describes."""


class EngineError(ModelError):
    """An engine cannot be built, loaded or run here."""


class NumericError(ModelError):
    """The network answered with NaN or infinity."""


class ImageError(ModelError):
    """One image cannot be classified."""

    status: ClassVar[int] = 400
    code: ClassVar[str] = "bad_image"


class EmptyImageError(ImageError):
    """The image has no bytes."""

    status = 400
    code = "empty_image"


class ImageTooLargeError(ImageError):
    """The image has more pixels than allowed."""

    status = 413
    code = "image_too_large"


class UnsupportedImageError(ImageError):
    """The bytes are no image, or one of a kind that has no defined preprocessing."""

    status = 415
    code = "unsupported_image"


class UndecodableImageError(ImageError):
    """The bytes start like an image of a known format but cannot be decoded."""

    status = 422
    code = "undecodable_image"


def describe_validation_error(error: ValidationError, *, where: str) -> str:
    """Returns every problem of a pydantic error on one line: where, field, what it got, what it accepts."""
    problems = []
    for item in error.errors(include_url=False):
        if item["type"] == "value_error":  # raised by a validator of ours, which says itself what it got
            problems.append(str(item["ctx"]["error"]))
            continue
        field = ".".join(str(part) for part in item["loc"]) or "(whole)"
        got = "" if item["type"] == "missing" else f" (got {_shorten(item['input'])})"
        text = "is not a field that is known here" if item["type"] == "extra_forbidden" else item["msg"]
        problems.append(f"{field}: {text}{got}")
    return f"{where}: " + "; ".join(problems)


def _shorten(value: object, *, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"
