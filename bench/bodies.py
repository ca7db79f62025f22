"""How an image is put into a request, and how the best class is read from an answer: they differ between servers."""

import base64
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

Framing = Literal["raw", "form", "json", "triton"]
BOUNDARY = "imgcls-bench"


def frame(image: bytes, framing: Framing) -> bytes:
    """Returns a request's body.

    Args:
        image: the bytes of an image file.
        framing: "raw" as they are, "form" as the file of a multipart form, "json" in base64, "triton" as a
            BYTES tensor of shape (1, 1).
    """
    if framing == "raw":
        return image
    if framing == "form":
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="image.jpg"\r\n'
        return f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + image + f"\r\n--{BOUNDARY}--\r\n".encode()
    if framing == "json":
        return json.dumps({"image_data": base64.b64encode(image).decode()}).encode()
    tensor = struct.pack("<I", len(image)) + image
    return _triton_head(len(tensor)) + tensor


def headers_of(framing: Framing) -> dict[str, str]:
    """Returns the headers that go with a framing."""
    if framing == "raw":
        return {"Content-Type": "image/jpeg"}
    if framing == "form":
        return {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    if framing == "json":
        return {"Content-Type": "application/json"}
    return {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(_triton_head(0))),
    }


def write_bodies(images: Sequence[Path], framing: Framing, *, folder: Path) -> Path:
    """Writes each image's body, and returns a JSON file that lists them; a second call finds them there."""
    listing = folder / f"{framing}.json"
    if not listing.exists():
        place = folder / framing
        place.mkdir(parents=True)
        files = [place / f"{number}.body" for number in range(len(images))]
        for image, file in zip(images, files, strict=True):
            file.write_bytes(frame(image.read_bytes(), framing))
        listing.write_text(json.dumps([str(file.absolute()) for file in files]), encoding="utf-8")
    return listing


def read_best(answer: bytes) -> str:
    """Returns the label of the best class.

    Args:
        answer: ours, {"predictions": [{"label": …}, …]}; the same as text in a Triton tensor; or TorchServe's
            image_classifier's {label: probability}.
    """
    fields = json.loads(answer)
    if "outputs" in fields:
        fields = json.loads(fields["outputs"][0]["data"][0])
    if "predictions" in fields:
        return str(fields["predictions"][0]["label"])
    return str(max(fields, key=fields.get))


def _triton_head(size: int) -> bytes:
    fields = {
        "inputs": [
            {"name": "image", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": size}},
        ],
        "outputs": [{"name": "answer"}],
    }
    return json.dumps(fields).encode().ljust(256)  # one length for all, as it stands in a header
