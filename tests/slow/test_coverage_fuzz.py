"""A minute of coverage-guided fuzzing (atheris, libFuzzer) of the path from a client's bytes to pixels."""

import base64
import importlib.util
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

TARGET = Path(__file__).parents[1] / "fuzz" / "fuzz_decode.py"
SECONDS = 60
OPTIONS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", "RGB", {}),
    ("JPEG", "L", {"progressive": True}),
    ("JPEG", "CMYK", {"restart_marker_blocks": 1}),
    ("PNG", "RGBA", {}),
    ("PNG", "P", {"transparency": b"\x00\x80"}),
    ("PNG", "I;16", {}),
    ("WEBP", "RGB", {}),
    ("BMP", "P", {}),
    ("GIF", "P", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF", "YCbCr", {"compression": "jpeg"}),
    ("TIFF", "1", {"compression": "group4"}),
)
LAYOUTS: tuple[dict[str, Any], ...] = (
    {"planarconfig": "contig", "rowsperstrip": 3},
    {"planarconfig": "separate", "compression": "zlib", "predictor": True},
    {"planarconfig": "contig", "tile": (16, 16), "compression": "zlib", "byteorder": ">"},
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this platform"),
]


def make_file(kind: str, mode: str, options: dict[str, Any]) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (18, 24, 3), dtype=np.uint8)
    is_deep = mode == "I;16"
    picture = Image.fromarray(values[..., 0].astype(np.uint16) * 257) if is_deep else Image.fromarray(values)
    exif = Image.Exif()
    exif[274] = 6
    buffer = io.BytesIO()
    extra = {"exif": exif} if kind in {"JPEG", "PNG", "WEBP"} else {}
    (picture if is_deep else picture.convert(mode)).save(buffer, kind, **options, **extra)
    return buffer.getvalue()


def make_bands(**layout: Any) -> bytes:
    values = np.random.default_rng(0).integers(0, 4096, (5, 10, 12), dtype=np.uint16)
    is_apart = layout.get("planarconfig") == "separate"
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values if is_apart else values.transpose(1, 2, 0), photometric="minisblack", **layout)
    return buffer.getvalue()


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    files = [make_file(*option) for option in OPTIONS]
    text = base64.b64encode(files[0]).decode()
    bodies = [
        {"image": text, "top_k": 2},
        {"images": [text, {"b64": text, "target": "cat"}]},
        {"instances": [{"image_bytes": {"b64": text}}], "parameters": {"top_k": 1}},
        {"id": "1", "inputs": [{"name": "i", "shape": [1, 1], "datatype": "BYTES", "data": [[text]]}]},
    ]
    inputs = [b"i" + file for file in files] + [b"j" + json.dumps(body).encode() for body in bodies]
    inputs += [b"b" + make_bands(**layout) for layout in LAYOUTS]
    for number, content in enumerate(inputs):
        (folder / f"{number:02}").write_bytes(content)
    return folder


def run_fuzzer(corpus: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(TARGET), str(corpus), "-max_len=4096", "-timeout=10", "-rss_limit_mb=1500", *flags]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=SECONDS + 120, check=False, cwd=corpus.parent
    )


def test_nothing_that_a_minute_of_fuzzing_finds_gets_past_the_errors_with_a_4xx(corpus):
    seeds = len(list(corpus.iterdir()))
    result = run_fuzzer(corpus, f"-max_total_time={SECONDS}")
    assert result.returncode == 0, result.stderr[-3000:]
    [runs] = re.findall(r"Done (\d+) runs", result.stderr)
    assert int(runs) > 1000
    assert len(list(corpus.iterdir())) > 2 * seeds, "the fuzzer found no new paths: is the code instrumented?"
