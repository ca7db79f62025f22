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
    ("index", "probability", "wrong"),
    [
        (1, 0.75, None),
        (1, 0.759, None),
        (1, 0.77, "0.png: got probability 0.7700, expected 0.7500 ± 0.01"),
        (0, 0.75, "0.png: got class 0, expected 1 (dog)"),
        (1, float("nan"), "got probability nan"),
    ],
)
def test_a_mismatch_is_described(index, probability, wrong):
    mismatch = describe_mismatch(GoldenItem(**ITEM), index=index, probability=probability)
    assert (mismatch is None) if wrong is None else (wrong in str(mismatch))
