"""Progress where nobody looks at a terminal: lines of a log, with the time that is left."""

from __future__ import annotations

import json
import threading
import time as clock
from typing import TYPE_CHECKING

import pytest

from mimiq_runtime import progress
from mimiq_runtime.event_log import EVENTS, note_started, record_events
from mimiq_runtime.named_steps import named_steps
from mimiq_runtime.progress import progress_bar

if TYPE_CHECKING:
    from pathlib import Path


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


def test_a_step_that_takes_long_is_told_of_while_it_lasts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a build of TensorRT, which calls nobody for minutes; nothing speaks when it is over."""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.02)
    threads = threading.active_count()
    with progress_bar("build", 3, alike=False) as advance:
        advance(0, "parse")
        advance(1, "choose kernels")
        said = ""
        deadline = clock.monotonic() + 20.0
        while said.count("choose kernels") < 2 and clock.monotonic() < deadline:
            clock.sleep(0.02)
            said += capsys.readouterr().err
    assert "build: step 2 of 3, 0:00:00 so far, choose kernels\n" * 2 in said
    assert threading.active_count() == threads


def test_steps_that_differ_have_a_time_so_far_and_none_that_is_left(
    now: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress_bar("export/trt", 3, alike=False) as advance:
        for step, name in enumerate(("capture", "passes", "check and write")):
            advance(min(step, 1), name)
            now[0] += 31.0
        advance(1, "")
    assert capsys.readouterr().err.splitlines() == [
        "export/trt: step 2 of 3, 0:00:31 so far, passes",
        "export/trt: step 3 of 3, 0:01:02 so far, check and write",
        "export/trt: step 3 of 3, 0:01:33 so far",
    ]


def test_named_steps_are_in_the_events_when_they_are_done(tmp_path: Path) -> None:
    """Of a step that fails nothing says that it is done."""

    def told() -> list[tuple[int, int, str]]:
        events = map(json.loads, (tmp_path / EVENTS).read_text().splitlines())
        steps = [event for event in events if event["event"] == "progress"]
        assert not any("seconds_left" in event for event in steps)
        return [(event["piece"], event["of"], event["message"]) for event in steps]

    def fail_in_a_step() -> None:
        with named_steps("export/trt", 2, directory=tmp_path) as begin:
            begin("capture")
            raise RuntimeError("no kernel")

    with record_events(tmp_path, "export"):
        note_started(tmp_path, "export/trt")
        with named_steps("export/trt", 2, directory=tmp_path) as begin:
            begin("capture")
            assert told() == []
            begin("passes")
            assert told() == [(0, 2, "capture")]
        assert told() == [(0, 2, "capture"), (1, 2, "passes")]
        with pytest.raises(RuntimeError, match="no kernel"):
            fail_in_a_step()
    assert len(told()) == 2


def test_named_steps_of_what_belongs_to_no_run(tmp_path: Path) -> None:
    with named_steps("build", 1, directory=None) as begin:
        begin("refit")
    assert not list(tmp_path.iterdir())
