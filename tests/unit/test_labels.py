import json
from pathlib import Path

import numpy as np
import pytest

from model.errors import SpecError
from model.labels import dump_labels, rank, read_labels


def test_labels_come_back_in_their_order(tmp_path: Path):
    names = tuple(f"class {number} – ä" for number in range(12))  # "10" sorts before "2"
    path = tmp_path / "index_to_name.json"
    path.write_text(dump_labels(names), encoding="utf-8")
    assert read_labels(path, count=12) == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"0": "a"}', 'got 1 keys; expected an object with the keys "0" to "1"'),
        ('{"0": "a", "1": "b", "2": "c"}', "got 3 keys"),
        ('{"1": "a", "2": "b"}', "got 2 keys"),
        ('["a", "b"]', "got list"),
        ("{", "cannot be read as JSON"),
        ("\xff", "cannot be read as JSON"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, text, message):
    path = tmp_path / "index_to_name.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SpecError, match=message):
        read_labels(path, count=2)


def test_ranking_is_best_first_and_ties_keep_the_classes_order():
    ranked = rank(np.array([0.2, 0.4, 0.2, 0.2], np.float32), names=["a", "b", "c", "d"], top_k=3)
    assert [(line["label"], line["index"]) for line in ranked] == [("b", 1), ("a", 0), ("c", 2)]
    assert json.loads(json.dumps(ranked)) == ranked


def test_more_than_there_are_classes_returns_them_all():
    assert len(rank(np.array([0.5, 0.5], np.float32), names=["a", "b"], top_k=5)) == 2
