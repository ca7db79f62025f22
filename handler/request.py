"""Reads one item of a TorchServe batch: which form it has, where its images are, and what it asks about each.

TorchServe gives a request as a dict of its parts: the body under "body" (or "data"), each field of a multipart form and
each query parameter under its own name. A JSON body is parsed already, or comes as bytes where TorchServe is told to
leave it, or where it is broken. The forms, with a command and an answer each: docs/requests.md.
"""

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Literal

from handler.errors import Failure, NotAcceptableError, NotOfferedError, RequestError, TooManyImagesError
from handler.gateway_headers import find_request_id, refuse_late
from handler.open_inference import OUTPUTS, read_id, read_outputs, read_parameters, read_tensors
from handler.options import OPTION_FIELDS, Headers, Options, find_header, find_options, parse_options, wants_picture
from handler.sources import EXAMPLE, IMAGE_FIELDS, JsonImage, RawImage, Source, find_image

MAX_IMAGES = 64  # of one request; they are decoded and run a few at a time, but answered together
MAX_EXPLAINED = 8  # of one request to /explanations; an explanation takes a backward pass, or sixteen


class Form(Enum):
    """How a request is written; `key` is the field of the JSON body that shows it."""

    IMAGE = "image"  # one image: a body, a file of a form, or JSON
    IMAGES = "images"  # JSON {"images": […]}, or a form with several files
    KSERVE = "instances"  # KServe v1
    OPEN_INFERENCE = "inputs"  # Open Inference Protocol, KServe v2


Kind = Literal["prediction", "explanation", "picture"]  # what is to be answered; a picture is of an explanation
LIST_FORMS = (Form.IMAGES, Form.KSERVE, Form.OPEN_INFERENCE)


@dataclass(frozen=True)
class ImageRequest:
    """One image to classify: where its bytes are, not read yet, and what is asked about it."""

    source: Source
    options: Options
    kind: Kind = "prediction"


@dataclass(frozen=True)
class Request:
    """One item of a batch; what is wrong with one image's own options stands in its place.

    Attributes:
        form: how it is written, and so how it is answered.
        images: of one, exactly one where form is IMAGE.
        names: of the images' files, of a form with several.
        kind: what is asked about all of them.
        id: what the Open Inference Protocol gives back.
        outputs: which tensors it asks for, of the same.
        error: why the request as a whole is refused; then there are no images.
        request_id: by which the gateway's logs know it.
    """

    form: Form
    images: tuple[ImageRequest | RequestError, ...] = ()
    names: tuple[str, ...] = ()
    kind: Kind = "prediction"
    id: str | None = None
    outputs: tuple[str, ...] = OUTPUTS
    error: Failure | None = None
    request_id: str | None = None


@dataclass(frozen=True)
class _Entry:
    """An image and the options of its own."""

    source: Source
    options: Mapping[str, Any]


def read_request(item: Mapping[str, Any], headers: Headers, *, defaults: Options, labels: Sequence[str]) -> Request:
    """Reads one item of a batch; a request that cannot be read comes back with its error.

    An option comes from the image's own entry or the `parameters` of the tensor that holds it, the JSON body, its
    `parameters`, the form or the query, or the header of that name, in this order.

    Args:
        item: its parts by name.
        headers: its headers, and the types of its parts.
        defaults: options where it says nothing.
        labels: the classes, which `target` may name.
    """
    request = Request(Form.IMAGE, request_id=find_request_id(headers))
    try:
        refuse_late(headers)
        _refuse_compressed(headers)
        headed = {name: find_header(headers, name) for name in OPTION_FIELDS}
        options = find_options(headed) | find_options(item)
        files = _list_files(item, headers)
        if len(files) > 1:
            request = replace(request, form=Form.IMAGES, names=tuple(files))
            entries: list[_Entry | RequestError] = [_Entry(RawImage(item[name]), {}) for name in files]
        else:
            if not files:
                _refuse_undeclared(headers)
            body = item[files[0]] if files else find_image(item, kind="request")
            request = replace(request, form=_guess_form(body))
            body = _parse_body(body)
            if isinstance(body, dict):
                request = replace(request, form=_find_form(body))
                options |= find_options(read_parameters(body)) | find_options(body)
                entries = _list_entries(body, request.form)
            else:
                entries = [_Entry(RawImage(body), {})]
            if request.form is Form.OPEN_INFERENCE:
                request = replace(request, id=read_id(body), outputs=read_outputs(body))
                options |= find_options(read_parameters(body["inputs"][0], of="inputs[0]."))
        if headers.get_request_properties().get("explain") == "True":  # the frontend's, by this very name
            request = replace(request, kind="picture" if wants_picture(headers) else "explanation")
        _check_possible(request, count=len(entries))
        base = parse_options(options, defaults=defaults, labels=labels)
        images = [_make_image(entry, base, kind=request.kind, labels=labels) for entry in entries]
        return replace(request, images=tuple(images))
    except RequestError as err:
        return replace(request, error=err)


def _make_image(
    entry: _Entry | RequestError, base: Options, *, kind: Kind, labels: Sequence[str]
) -> ImageRequest | RequestError:
    if isinstance(entry, RequestError):
        return entry
    try:
        options = parse_options(entry.options, defaults=base, labels=labels)
    except RequestError as err:
        return err
    return ImageRequest(entry.source, options, kind)


def _list_files(item: Mapping[str, Any], headers: Headers) -> list[str]:
    """Returns the names of the parts that have a content type: a body, or the files of a form; text fields have none.

    Files of the same name are one by now, the last: TorchServe has put them into one dict.
    """
    types = headers.get_request_properties()
    return [name for name in item if name not in OPTION_FIELDS and _is_file(item[name], declared=types.get(name))]


def _is_file(value: Any, *, declared: Any) -> bool:
    if isinstance(declared, dict):
        return bool(declared.get("content-type"))
    if not isinstance(declared, str) or not isinstance(value, bytes | bytearray):
        return False
    try:  # a header of the part's name, such as Host, stands where the part's type was
        value.decode()
    except UnicodeDecodeError:
        return True
    return False


def _refuse_compressed(headers: Headers) -> None:
    """Raises RequestError for a body that the client has compressed; neither TorchServe nor this unpacks it."""
    encoding = (find_header(headers, "content-encoding") or "").strip().lower()
    if encoding not in ("", "identity"):
        raise RequestError(
            f"the body came with Content-Encoding {encoding[:40]!r}, which is not undone; send it as it is"
        )


def _refuse_undeclared(headers: Headers) -> None:
    """Raises RequestError for the type that curl gives a body by itself; TorchServe tears such a body into fields."""
    if (find_header(headers, "content-type") or "").lower().startswith("application/x-www-form-urlencoded"):
        raise RequestError(
            "the body came as application/x-www-form-urlencoded; send it with Content-Type application/octet-stream, "
            "or application/json"
        )


def _parse_body(body: Any) -> Any:
    """Parses a body that is JSON but was not parsed on its way; a body that is no JSON comes back as it is.

    Raises:
        RequestError: it starts like a JSON object and is broken, or it is JSON but no object.
    """
    if isinstance(body, bytes | bytearray | str) and _starts_as_json(body):
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as err:
            raise RequestError(f"the body starts like JSON but cannot be parsed: {err}") from err
    if not isinstance(body, bytes | bytearray | str | dict):
        raise RequestError(f"the JSON body is {type(body).__name__}; expected an object such as {EXAMPLE}")
    return body


def _starts_as_json(body: bytes | bytearray | str) -> bool:
    """Whether an object begins; Windows programs like to write a byte order mark before it."""
    start = body if isinstance(body, str) else body.removeprefix(codecs.BOM_UTF8)
    return start.lstrip()[:1] in ("{", b"{")


def _guess_form(body: Any) -> Form:
    """Returns the form that a body seems to have, in which it is answered where it cannot be read."""
    key = f'"{Form.OPEN_INFERENCE.value}"'
    if isinstance(body, dict):
        is_open = Form.OPEN_INFERENCE.value in body
    elif isinstance(body, str):
        is_open = _starts_as_json(body) and key in body
    else:
        is_open = isinstance(body, bytes | bytearray) and _starts_as_json(body) and key.encode() in body
    return Form.OPEN_INFERENCE if is_open else Form.IMAGE


def _find_form(body: Mapping[str, Any]) -> Form:
    found = [form for form in LIST_FORMS if form.value in body]
    fields = [form.value for form in found] + [name for name in IMAGE_FIELDS if name in body]
    if found and len(fields) > 1:
        raise RequestError(f"the JSON body has {' and '.join(fields)}; expected one of them")
    return found[0] if found else Form.IMAGE


def _list_entries(body: Mapping[str, Any], form: Form) -> list[_Entry | RequestError]:
    if form is Form.IMAGE:
        return [_Entry(JsonImage(find_image(body, kind="JSON object")), {})]
    if form is Form.OPEN_INFERENCE:
        return [_Entry(source, {}) for source in read_tensors(body)]
    values = body[form.value]
    if not isinstance(values, list):
        raise RequestError(f"{form.value} is {type(values).__name__}; expected a list of images")
    return [_make_entry(value) for value in values]


def _make_entry(value: Any) -> _Entry | RequestError:
    if not isinstance(value, dict):
        return _Entry(JsonImage(value), {})
    try:
        return _Entry(JsonImage(find_image(value, kind="JSON object")), find_options(value))
    except RequestError as err:
        return err


def _check_possible(request: Request, *, count: int) -> None:
    """Raises RequestError where a request asks for too much, or for what its form cannot be answered with."""
    limit = MAX_IMAGES if request.kind == "prediction" else MAX_EXPLAINED
    if count > limit:
        raise TooManyImagesError(
            f"the request holds {count} images; at most {limit} are accepted, send several requests"
        )
    if not count:
        raise RequestError("the request holds no images; expected at least one")
    if request.kind != "prediction" and request.form is Form.OPEN_INFERENCE:
        raise NotOfferedError("the Open Inference Protocol has no explanations; send the image in another form")
    if request.kind == "picture" and request.form is not Form.IMAGE:
        raise NotAcceptableError("a picture shows one image; send one, or ask with Accept: application/json")
