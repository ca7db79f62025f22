from pathlib import Path

import pytest

from model.errors import SpecError
from model.spec import ModelSpec, dump_spec, read_spec

FIELDS = {"size": 8, "resize": 9, "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0), "classes": ("cat", "Äpfel")}


def test_a_spec_comes_back_from_its_file_as_it_was(tmp_path: Path):
    spec = ModelSpec(parameters={"widths": [4, 8], "norm": "batch"}, interpolation="bicubic", **FIELDS)
    path = tmp_path / "spec.yaml"
    path.write_text(dump_spec(spec), encoding="utf-8")
    assert dump_spec(read_spec(path)) == dump_spec(spec)
    assert read_spec(path) == spec


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"channels": 65}, r"channels: .* less than or equal to 64 \(got 65\)"),
        ({"size": 0}, r"size: .* \(got 0\)"),
        ({"mean": (0.1,)}, "mean has 1 and std 3 values; expected 3 each"),
        ({"std": (1, 1, 0)}, r"std\.2: .* greater than 0"),
        ({"mean": (0, 0, float("nan"))}, r"mean\.2: .* finite"),
        ({"resize": 7}, "resize is 7; expected at least size, which is 8"),
        ({"classes": ("cat", "cat")}, "classes holds cat more than once"),
        ({"classes": ("cat",)}, "classes: .* at least 2"),
        ({"interpolation": "area"}, r"interpolation: .* \(got 'area'\)"),
        ({"temperature": "true"}, r"temperature: .* valid number \(got True\)"),
        ({"mean": "[0.1, 0.2, yes]"}, r"mean: .* valid number"),
        ({"ranges": "[[0, 9], [0, 9], [no, 9]]"}, r"ranges: .* valid integer"),
        ({"colour": 1}, "colour: is not a field that is known here"),
    ],
)
def test_a_field_that_cannot_be_is_named_on_one_line(tmp_path: Path, changed, message):
    path = tmp_path / "spec.yaml"
    fields = {**FIELDS, **changed}
    path.write_text("\n".join(f"{key}: {_to_yaml(value)}" for key, value in fields.items()), encoding="utf-8")
    with pytest.raises(SpecError, match=message) as caught:
        read_spec(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def _to_yaml(value: object) -> str:
    text = str(list(value)) if isinstance(value, tuple) else str(value)
    return text.replace("nan", ".nan")


@pytest.mark.parametrize("text", ["a: [", "just text", "", "- 1", "\x00", "a: 2020-99-99", f"a: {'[' * 9000}"])
def test_a_file_that_is_no_mapping_is_refused_on_one_line(tmp_path: Path, text):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecError, match=r"cannot be read as YAML|expected a mapping") as caught:
        read_spec(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(SpecError, match=r"nowhere\.yaml: cannot be read"):
        read_spec(tmp_path / "nowhere.yaml")
