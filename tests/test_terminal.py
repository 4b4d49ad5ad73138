"""What is written to a terminal: nothing that moves its cursor, and times left that can be believed."""

from __future__ import annotations

import io
import sys

import pytest

from sdeflow import terminal
from sdeflow.terminal import counted, progress_bar, progress_bars, shown, table

WARM_UP, STEP, STEPS = 200.0, 2.0, 101
"""Seconds of the first step, of each later one, and how many."""


class Clock:
    """A clock that stands still but for what is added to it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("over\rwritten\b", r"over\rwritten\x08"),
        ("left\u202eright", r"left\u202eright"),
        ("\x9b31m", r"\x9b31m"),
        ("√(2γT) dW, naïve, 数\n\tas it is", "√(2γT) dW, naïve, 数\n\tas it is"),
    ],
)
def test_control_characters_are_escaped(text: str, expected: str) -> None:
    assert shown(text) == expected


def test_a_table_escapes_them(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(terminal, "out", terminal.Console(width=80))
    table("a \x1btitle", ("name", "told"), [["one\x1b[1A", "two\x07"]])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"one\x1b[1A" in out


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_the_time_left_knows_nothing_of_the_first_step(
    monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]
) -> None:
    """A first step of 200 s and 100 of 2 s: after 51 steps 100 s are left, not 50 times 300/51."""
    clock, stderr = Clock(), stream()
    monkeypatch.setattr(terminal, "time", clock)
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar() as report:
        clock.now += WARM_UP
        report(1, STEPS, None)
        for step in range(2, 52):
            clock.now += STEP
            report(step, STEPS, 3.5)
    assert "0.5 steps/s, 100 s left, loss 3.5" in stderr.getvalue()


def test_a_slow_first_step_is_told_at_once_and_quick_ones_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    for first, said in ((1.0, ""), (5.0, "step 1 of 9, after 5 s\n")):
        with progress_bar() as report:
            clock.now += first
            report(1, 9, None)
            clock.now += 1.0
            report(2, 9, None)
        assert capsys.readouterr().err == said


@pytest.mark.parametrize("stream", [Terminal, io.StringIO])
def test_one_bar_after_the_other(monkeypatch: pytest.MonkeyPatch, stream: type[io.StringIO]) -> None:
    """Each with its unit and a rate of its own, of which one alone is there at a time, or none."""
    clock, stderr = Clock(), stream()
    monkeypatch.setattr(terminal, "time", clock)
    monkeypatch.setattr(terminal, "_SECONDS_BETWEEN_LINES", 0)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    with progress_bars("move", "image"):
        pass
    assert stderr.getvalue() == ""
    with progress_bars("move", "image") as (moves, images):
        for report, seconds in ((moves, 2.0), (images, 5.0)):
            clock.now += 100
            for step in range(1, 4):
                report(step, 9, None)
                clock.now += seconds
    told = stderr.getvalue()
    assert "0.5 moves/s, 12 s left" in told
    assert "5 s an image, 30 s left" in told
    assert told.rindex("move") < told.index("image")


def test_things_that_are_no_steps_are_counted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(terminal, "time", clock)
    with counted("point", 3) as tick:
        for _ in range(3):
            clock.now += 40.0
            tick()
    assert capsys.readouterr().err.splitlines() == [
        "point 1 of 3, after 40 s",
        "point 2 of 3, 40 s a point, 40 s left",
        "point 3 of 3, 40 s a point, 0 s left",
    ]
