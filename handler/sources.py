"""Where the bytes of an image stand in a request; they are read when the image's turn comes, one chunk at a time."""

import base64
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from handler.errors import RequestError
from handler.options import OPTION_FIELDS

IMAGE_FIELDS = ("data", "body", "image", "file", "b64")
EXAMPLE = '{"image": "<base64>"}'


@dataclass(frozen=True)
class RawImage:
    """An image that was sent as it is: a body, or a file of a form."""

    value: Any

    def read(self) -> bytes:
        """Returns the file's bytes.

        Raises:
            RequestError: TorchServe has parsed it as JSON.
        """
        if isinstance(self.value, str):  # TorchServe has decoded a text; whoever decodes images says that it is none
            return self.value.encode(errors="replace")
        if isinstance(self.value, bytes | bytearray):
            return bytes(self.value)
        raise RequestError(f"the part of the form is JSON ({type(self.value).__name__}); expected the image's bytes")


@dataclass(frozen=True)
class JsonImage:
    """An image inside a JSON body: base64, perhaps as a data: URL, perhaps as {"b64": …}."""

    value: Any

    def read(self) -> bytes:
        """Returns the file's bytes.

        Raises:
            RequestError: it is no text, or no base64.
        """
        text = self.value
        if isinstance(text, dict) and set(text) == {"b64"}:  # as TensorFlow Serving's REST API writes binary values
            text = text["b64"]
        if not isinstance(text, str):
            raise RequestError(f"the image in the JSON body is {type(text).__name__}; expected a base64 string")
        payload = text.partition(",")[2] if text.startswith("data:") else text
        try:
            return base64.b64decode("".join(payload.split()), validate=True)
        except ValueError as err:  # binascii.Error is one; characters beyond ASCII raise a plain one
            raise RequestError(f"the image in the JSON body is not valid base64: {err}") from err


Source = RawImage | JsonImage


def find_image(fields: Mapping[str, Any], *, kind: str) -> Any:
    """Returns the value of the one field that holds an image.

    Args:
        fields: of a form or a JSON object, options among them.
        kind: what they are called in an error.

    Raises:
        RequestError: none of them does, or several do.
    """
    found = [name for name in IMAGE_FIELDS if name in fields]
    if len(found) > 1:
        raise RequestError(
            f"the {kind} holds {len(found)} images ({', '.join(found)}); send one, or several as "
            '{"images": ["<base64>", …]} or as the files of a form'
        )
    if found:
        return fields[found[0]]
    others = [name for name in fields if name not in OPTION_FIELDS]
    if len(others) == 1:  # whatever its name is
        return fields[others[0]]
    raise RequestError(
        f"the {kind} holds no image; send the image's bytes as the body, with Content-Type application/octet-stream, "
        f"or JSON such as {EXAMPLE} (got the fields: {', '.join(map(str, others))[:200] or 'none'})"
    )
