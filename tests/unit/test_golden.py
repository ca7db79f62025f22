import json

import pytest

from model.errors import SpecError
from model.golden import GoldenItem, describe_mismatch, parse_golden

ITEM = {"file": "0.png", "index": 1, "label": "dog", "probability": 0.75}


def test_items_carry_the_bytes_of_their_files():
    items = parse_golden(
        json.dumps([ITEM, ITEM | {"file": "1.png"}]), read_file={"0.png": b"a", "1.png": b"b"}.__getitem__
    )
    assert [(item.file, item.data, item.label) for item in items] == [("0.png", b"a", "dog"), ("1.png", b"b", "dog")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "is empty"),
        ("{", "cannot be read"),
        ("null", "cannot be read"),
        ('["0.png"]', "cannot be read"),
        (json.dumps([{"file": "0.png"}]), "index: Field required; label: Field required"),
        (json.dumps([ITEM | {"probability": 1.5}]), r"probability: .* \(got 1.5\)"),
        (json.dumps([ITEM | {"note": "x"}]), "note: is not a field that is known here"),
    ],
)
def test_what_is_no_list_of_golden_items_is_refused(text, message):
    with pytest.raises(SpecError, match=f"golden/expected.json: {message}"):
        parse_golden(text, read_file=lambda name: b"")


@pytest.mark.parametrize(
    ("probability", "wrong"),
    [
        (0.75, None),
        (0.759, None),
        (0.77, "0.png: got probability 0.7700 for class 1 (dog), expected 0.7500 ± 0.01"),
        (float("nan"), "got probability nan"),
    ],
)
def test_a_mismatch_is_described(probability, wrong):
    mismatch = describe_mismatch(GoldenItem(**ITEM), probability=probability)
    assert (mismatch is None) if wrong is None else (wrong in str(mismatch))


def test_an_engine_is_compared_with_its_own_answer_and_tolerance():
    item = GoldenItem(**ITEM, engines={"openvino-int8": {"probability": 0.6, "tolerance": 0.03}})
    assert describe_mismatch(item, probability=0.625, engine="openvino-int8") is None
    assert describe_mismatch(item, probability=0.64, engine="openvino-int8").endswith("expected 0.6000 ± 0.03")
    assert describe_mismatch(item, probability=0.75, engine="openvino-int8")
    assert describe_mismatch(item, probability=0.625, engine="eager")


def test_of_an_unknown_engine_any_engines_answer_is_right():
    item = GoldenItem(**ITEM, engines={"openvino-int8": {"probability": 0.6, "tolerance": 0.03}})
    assert [describe_mismatch(item, probability=value) for value in (0.75, 0.6)] == [None, None]
    assert describe_mismatch(item, probability=0.7).endswith("expected 0.7500 ± 0.01 or 0.6000 ± 0.03")


def test_among_many_classes_the_tolerance_shrinks_with_the_probability():
    item = GoldenItem(**ITEM | {"probability": 0.002})
    assert describe_mismatch(item, probability=0.0021) is None
    assert describe_mismatch(item, probability=0.001)  # every one of 1000 classes alike
