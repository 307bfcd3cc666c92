"""Progress where nobody looks at a terminal: lines of a log, with the time that is left."""

from __future__ import annotations

import pytest

from mimiq_runtime import progress
from mimiq_runtime.progress import progress_bar


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    time = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_a_line_every_half_minute_with_the_time_that_is_left(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    """100 of 200 steps were done before; a step takes 2 s."""
    with progress_bar("synthesis", 200) as advance:
        advance(100, "")
        for step in range(1, 61):
            now[0] += 2.0
            advance(1, f"loss {step}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "synthesis: 115 of 200, about 0:02:50 left, loss 15",
        "synthesis: 130 of 200, about 0:02:20 left, loss 30",
        "synthesis: 145 of 200, about 0:01:50 left, loss 45",
        "synthesis: 160 of 200, about 0:01:20 left, loss 60",
    ]


def test_short_work_and_other_processes_say_nothing(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("export", 3) as advance:
        for _ in range(3):
            now[0] += 9.0
            advance(1, "")
    with progress_bar("synthesis", 3, visible=False) as advance:
        for _ in range(3):
            now[0] += 90.0
            advance(1, "")
    assert capsys.readouterr().err == ""
