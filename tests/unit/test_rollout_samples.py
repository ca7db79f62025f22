"""Answers are paired by request id, and labels find the answers that they belong to."""

from pathlib import Path

import pytest

from imgcls.rollout.errors import LabelsError
from imgcls.rollout.labels import (
    append_labels,
    count_unknown,
    find_right,
    find_strange,
    load_labels,
    read_labels,
)
from imgcls.rollout.samples import Sample, join_answers, pair_answers


def answer(request_id, version="1", *, shadow=False, status=200, label="cat", probability=0.9, listed=None):
    return Sample(1000.0, request_id, version, shadow, status, 12.0, label, probability, listed)


def join(*samples):
    return join_answers(samples, stable="1", candidate="2")


def test_stable_answer_and_its_shadow_make_a_pair():
    pairs = pair_answers(
        [answer("a", "2", shadow=True, label="dog"), answer("a"), answer("b"), answer("b", "2", shadow=True)],
        stable="1",
        candidate="2",
    )
    assert [(pair.request_id, pair.is_alike) for pair in pairs] == [("a", False), ("b", True)]


def test_what_has_no_two_answers_is_no_pair():
    joined = join(
        answer("alone"),
        answer("canary"),
        answer("canary", "2"),
        answer("failed"),
        answer("failed", "2", shadow=True, status=503, label=None),
        answer("lost"),
        answer("lost", "2", shadow=True, status=0, label=None),
        answer("other"),
        answer("other", "3", shadow=True),
    )
    assert joined.pairs == ()
    assert joined.refused == 0


def test_refusal_counts_only_where_stable_answered():
    joined = join(
        answer("a"),
        answer("a", "2", shadow=True, status=422, label=None),
        answer("b", status=415, label=None),
        answer("b", "2", shadow=True, status=415, label=None),
    )
    assert joined.pairs == ()
    assert joined.refused == 1


def test_drift_follows_the_class_of_the_stable_version():
    listed = {"dog": 0.6, "cat": 0.3}
    (pair,) = join(answer("a"), answer("a", "2", shadow=True, label="dog", probability=0.6, listed=listed)).pairs
    assert pair.drift == pytest.approx(0.6)
    (pair,) = join(answer("a"), answer("a", "2", shadow=True, label="cat", probability=0.7)).pairs
    assert pair.drift == pytest.approx(0.2)


def test_class_that_was_not_listed_counts_as_nothing():
    (pair,) = join(answer("a"), answer("a", "2", shadow=True, label="dog", probability=0.8, listed={"dog": 0.8})).pairs
    assert pair.drift == pytest.approx(0.9)


@pytest.mark.parametrize(("status", "is_error", "is_counted"), [(200, 0, 1), (0, 1, 1), (500, 1, 1), (404, 0, 0)])
def test_server_errors_count_and_the_clients_own_do_not(status, is_error, is_counted):
    sample = answer("a", status=status)
    assert (sample.is_error, sample.is_counted) == (is_error, is_counted)


def test_labels_are_read_from_jsonl_and_csv(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"request_id": "1", "label": "cat"}\n\n{"request_id": "1", "label": "dog"}\n')
    (tmp_path / "a.csv").write_text('label,request_id,note\n"a, cat",1,\ndog,2,sure\n')
    assert read_labels(tmp_path / "a.jsonl") == {"1": "dog"}
    assert read_labels(tmp_path / "a.csv") == {"1": "a, cat", "2": "dog"}


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        (
            "a.jsonl",
            '{"request_id": "1", "label": "cat"}\n{"request_id": 2, "label": "cat"}',
            r"a\.jsonl:2: got .*texts",
        ),
        ("a.jsonl", "cat\n", r"a\.jsonl:1: is not JSON"),
        ("a.csv", "id,label\n1,cat\n", r"a\.csv:2: got id='1'"),
        ("a.csv", "request_id,label\n1\n", r"a\.csv:2: got"),
        ("a.csv", f"request_id,label\n1,{'c' * 200_000}\n", r"a\.csv: is not CSV after line 1: field larger"),
        ("a.txt", "", r"expected a \.jsonl or \.csv"),
    ],
)
def test_labels_that_cannot_be_used_are_named_by_line(tmp_path, name, text, problem):
    (tmp_path / name).write_text(text)
    with pytest.raises(LabelsError, match=problem):
        read_labels(tmp_path / name)


def test_labels_that_are_written_otherwise_than_the_classes_are_refused():
    classes, where = {"cat", "dog"}, Path("labels.csv")
    assert find_strange({}, classes, where=where) == []
    assert find_strange({"1": "cat", "2": "none of them"}, classes, where=where) == ["none of them"]
    with pytest.raises(LabelsError, match=r"labels\.csv: none of its 2 labels, such as 'Cat', .* such as 'cat', 'dog'"):
        find_strange({"1": "Cat", "2": "Cat"}, classes, where=where)


def test_last_label_wins_and_a_cut_line_is_left_out(tmp_path):
    path = tmp_path / "labels.jsonl"
    assert load_labels(path) == {}
    append_labels(path, {"1": "cat", "2": "cat"})
    with path.open("a") as file:
        file.write('{"request_id": "3", "la')  # a crash
    append_labels(path, {"2": "dog", "4": "a\nline"})
    assert load_labels(path) == {"1": "cat", "2": "dog", "4": "a\nline"}


def test_labels_find_their_answers_and_unknown_ones_are_counted():
    samples = [answer("1"), answer("2", status=500, label=None), answer("3", "2"), answer("4", label="dog")]
    labels = {"1": "cat", "2": "cat", "3": "cat", "4": "cat", "9": "cat"}
    assert find_right(samples, labels, version="1") == {"1": True, "4": False}
    of_many_images = answer("9", label=None, probability=None)
    assert find_right([*samples, of_many_images], labels, version="1") == {"1": True, "4": False}
    assert count_unknown(labels, samples) == 1
