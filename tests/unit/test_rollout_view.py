"""The view of a rollout on terminals of any width, and its line in a log."""

import io
import re
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from imgcls.rollout.snapshot import Event, Snapshot, StepView, VersionView, has_changed
from imgcls.rollout.verdicts import MetricVerdict
from imgcls.rollout.view import render, render_line

METRICS = (
    MetricVerdict("samples", "successful", 578, None, 100, (578, 578), 578, "samples: 578"),
    MetricVerdict("error_rate.max_increase", "inconclusive", 0.0021, 0.0013, 0.01, (-0.0027, 0.0112), 578, "…"),
    MetricVerdict("p99_ms.max_ratio", "failed", 2.1, 1.0, 1.5, (1.6, None), 578, "too slow"),
    MetricVerdict("probability_drift.max", "successful", 0.0136, None, 0.05, (0.0026, 0.0311), 575, "…"),
)
STEPS = (
    StepView("verify", "done", 1000.0, 1000.2),
    StepView("shadow", "done", 1010.0, 1190.0, 180.0),
    StepView("canary 10 %", "running", 1200.0, None, 300.0),
    *(StepView(f"canary {weight} %") for weight in (20, 30, 40, 50, 60)),
    StepView("promote"),
)
SNAPSHOT = Snapshot(
    model="imgcls",
    stable=VersionView("1.0", "stable", 90, 0, 4, 4, 45.1, 0.0021, 21.2, 63.8),
    candidate=VersionView("1.1", "new", 10, 20, 3, 4, 14.6, 0.0019, 20.9, 1066.0),
    now_s=1331.0,
    began_s=1000.0,
    steps=STEPS,
    agreement=0.9897,
    drift=0.0123,
    verdict="failed",
    reason="p99_ms.max_ratio: too slow",
    metrics=METRICS,
    events=tuple(Event(1000.0 + index, f"event {index}") for index in range(7)),
)


def show(snapshot, *, width=80, encoding="utf-8", **options):
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding, errors="strict")
    Console(width=width, file=file, **options).print(render(snapshot))
    file.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_all_facts_fit_the_terminal(width):
    text = show(SNAPSHOT, width=width)
    assert max(map(len, text.splitlines())) <= width
    for fact in (
        "1.0 → 1.1",
        "✓ shadow 3:00",
        "● canary 10 %",
        "○ canary 60 %",
        "2:11 of 5:00",
        "3 of 4",
        "1,066.0",
        "98.97 %",
        "… inconclusive",
        "✗ failed",
        "probability_drift.max",
        "event 6",
    ):
        assert fact in text, fact
    assert "event 1" not in text
    assert ("1.60 x to any" in text) == (width >= 100)


def test_height_suits_a_small_terminal():
    assert len(show(SNAPSHOT).splitlines()) <= 30


def test_terminal_gets_colours_unless_no_color_is_set(monkeypatch):
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[31m" in show(SNAPSHOT, force_terminal=True) or "\x1b[1;31m" in show(SNAPSHOT, force_terminal=True)
    monkeypatch.setenv("NO_COLOR", "1")
    assert not re.search(r"\x1b\[[\d;]*3[0-7]m", show(SNAPSHOT, force_terminal=True))


def test_no_terminal_gets_plain_text():
    assert "\x1b" not in show(SNAPSHOT)


def test_ascii_terminals_are_not_asked_for_more():
    text = show(SNAPSHOT, encoding="ascii")
    assert "1.0 -> 1.1" in text
    assert "x failed" in text


def test_beginning_has_no_numbers_yet():
    bare = Snapshot("imgcls", VersionView("1.0", "stable", 100), VersionView("1.1", "new", 0), 5.0, 0.0)
    assert "0 of 0" in show(bare)
    assert "imgcls 1.0 -> 1.1: running; 1.1 gets 0 %, 0 of 0 workers READY" in render_line(bare)


def test_plan_and_view_need_no_numpy():
    blocked = "import sys; sys.modules.update(dict.fromkeys(['numpy', 'scipy', 'torch']))"
    script = f"{blocked}; import imgcls.rollout.plan, imgcls.rollout.view, imgcls.rollout.labels"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_hold_that_is_waited_beyond_says_so():
    assert "6:40 of 5:00 beyond its hold" in show(replace(SNAPSHOT, now_s=1600.0))


def test_line_tells_step_traffic_and_verdict():
    line = render_line(replace(SNAPSHOT, reason="two\nlines"))
    assert re.match(r"\d\d:\d\d:\d\d imgcls 1\.0 -> 1\.1: running; canary 10 % running 2:11 of 5:00; ", line)
    assert "1.1 gets 10 % + 20 % shadow, 3 of 4 workers READY; errors 0.19 %; p99 1,066 ms; alike 98.97 %" in line
    assert line.endswith("failed: two lines")
    assert line.isascii()


@pytest.mark.parametrize(
    ("change", "is_news"),
    [
        ({"now_s": 2000.0, "agreement": 0.5, "reason": "other numbers"}, False),
        ({"verdict": "inconclusive"}, True),
        ({"outcome": "aborted"}, True),
        ({"steps": STEPS[:2]}, True),
        ({"candidate": replace(SNAPSHOT.candidate, weight=0)}, True),
        ({"candidate": replace(SNAPSHOT.candidate, p99_ms=3)}, False),
    ],
)
def test_only_news_are_worth_a_line(change, is_news):
    assert has_changed(SNAPSHOT, replace(SNAPSHOT, **change)) == is_news
    assert has_changed(None, SNAPSHOT)
