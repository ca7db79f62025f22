"""Reads one item of a TorchServe batch: where its image is, and what it asks for.

TorchServe gives a request as a dict of its parts: the body under "body" (or "data"), each field of a multipart form and
each query parameter under its own name. A JSON body is already parsed, unless it is broken: then it comes as bytes.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from handler.errors import RequestError

IMAGE_FIELDS = ("data", "body", "image", "file", "b64")
OPTION_FIELDS = ("top_k",)


class Headers(Protocol):
    """What the handler uses of TorchServe's RequestProcessor."""

    def get_request_property(self, key: str) -> str | None:
        """Returns a request header, or None."""


@dataclass(frozen=True)
class ImageRequest:
    """One image to classify: the bytes of its file, and how many classes to rank."""

    image: bytes
    top_k: int


def read_request(item: Mapping[str, Any], headers: Headers, *, default_top_k: int) -> ImageRequest:
    """Reads one item of a batch.

    `top_k` comes from the JSON body, the query or the header of that name, in this order.

    Raises:
        RequestError: no image in it, JSON or base64 that is broken, or a `top_k` that is no whole number from 1.
    """
    body = _parse_json(_find_body(item))
    options: dict[str, Any] = {name: item[name] for name in OPTION_FIELDS if name in item}
    if isinstance(body, dict):
        options |= {name: body[name] for name in OPTION_FIELDS if name in body}
        body = _find_body(body, kind="JSON object")
        image = _decode_base64(body)
    elif isinstance(body, str):
        image = body.encode(errors="replace")
    elif isinstance(body, bytes | bytearray):
        image = bytes(body)
    else:
        raise RequestError(
            f'the JSON body is {type(body).__name__}; expected an object such as {{"image": "<base64>"}}'
        )
    top_k = options.get("top_k", headers.get_request_property("top_k"))
    return ImageRequest(image=image, top_k=default_top_k if top_k is None else _parse_top_k(top_k))


def _find_body(item: Mapping[str, Any], *, kind: str = "request") -> Any:
    found = [name for name in IMAGE_FIELDS if name in item]
    if len(found) > 1:
        raise RequestError(f"the {kind} holds {len(found)} images ({', '.join(found)}); send one a request")
    if found:
        return item[found[0]]
    others = [name for name in item if name not in OPTION_FIELDS]
    if len(others) == 1:  # a multipart form whose one file has a name of its own
        return item[others[0]]
    raise RequestError(
        f"the {kind} holds no image; send the image's bytes as the body, with Content-Type application/octet-stream, "
        f'or JSON such as {{"image": "<base64>"}} (got the fields: {", ".join(map(str, others)) or "none"})'
    )


def _parse_json(body: Any) -> Any:
    """Parses a body that is JSON but was not sent as application/json; anything else comes back as it is."""
    if not isinstance(body, bytes | bytearray) or body.lstrip()[:1] != b"{":
        return body
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as err:
        raise RequestError(f"the body starts like JSON but cannot be parsed: {err}") from err


def _decode_base64(text: Any) -> bytes:
    if not isinstance(text, str):
        raise RequestError(f"the image in the JSON body is {type(text).__name__}; expected a base64 string")
    payload = text.partition(",")[2] if text.startswith("data:") else text  # a data: URL carries the same base64
    try:
        return base64.b64decode("".join(payload.split()), validate=True)
    except ValueError as err:  # binascii.Error is one; characters beyond ASCII raise a plain one
        raise RequestError(f"the image in the JSON body is not valid base64: {err}") from err


def _parse_top_k(value: Any) -> int:
    text = value.decode(errors="replace") if isinstance(value, bytes | bytearray) else str(value)
    if not text.isascii() or not text.isdigit() or int(text[:9]) < 1:
        raise RequestError(f"top_k is {text[:40]!r}; expected a whole number from 1")
    return int(text[:9])
