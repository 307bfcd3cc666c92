"""The events of a run: whole lines, whoever ends the process, and nothing that is not its own."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import warnings
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from _helpers.runs import make_run
from click.testing import CliRunner

from mimiq_deploy.cli import Terminated, cli
from mimiq_runtime import event_log, peak_memory
from mimiq_runtime.errors import DivergedError, InvalidInputError
from mimiq_runtime.event_log import (
    EVENTS,
    EventKind,
    note_finished,
    note_progress,
    note_skipped,
    note_started,
    read_events,
    record_events,
)
from mimiq_runtime.run_directory import RunDirectory


def lines(folder: Path) -> list[dict[str, Any]]:
    """As another program reads them."""
    return [json.loads(line) for line in (folder / EVENTS).read_text().splitlines()]


def short(folder: Path) -> list[tuple[str, str | None]]:
    return [(line["event"], line.get("stage")) for line in lines(folder)]


def test_the_time_that_is_left_counts_what_was_made_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 8 pieces 2 are skipped; 10 s a piece leave 50 s after the first one made."""
    now = [100.0]
    monkeypatch.setattr(event_log.time, "monotonic", lambda: now[0])
    with record_events(tmp_path, "calibrate"):
        note_started(tmp_path, "synthesis")
        note_skipped(tmp_path, "synthesis", 2, 8)
        note_skipped(tmp_path, "synthesis", 0, 8)
        for piece in (2, 3):
            now[0] += 10.0
            note_progress(tmp_path, "synthesis", piece, 8)
    told = [line for line in lines(tmp_path) if line["event"] in ("skipped", "progress")]
    assert [(line["event"], line["piece"]) for line in told] == [
        *(("skipped", 1), ("progress", 2), ("progress", 3)),
    ]
    assert [line["seconds_left"] for line in told[1:]] == [50.0, 40.0]


def test_a_command_with_stages(tmp_path: Path) -> None:
    with record_events(tmp_path, "calibrate"):
        note_started(tmp_path, "synthesis")
        for piece in range(2):
            note_progress(tmp_path, "synthesis", piece, 2)
        note_finished(tmp_path, "synthesis")
    told = lines(tmp_path)
    assert short(tmp_path) == [
        *(("started", None), ("started", "synthesis")),
        *(("progress", "synthesis"), ("progress", "synthesis")),
        *(("finished", "synthesis"), ("finished", None)),
    ]
    assert {(line["pid"], line["command"]) for line in told} == {(os.getpid(), "calibrate")}
    times = [datetime.fromisoformat(line["time"]) for line in told]
    assert times == sorted(times)
    assert all(time.utcoffset() is not None for time in times)
    assert [(line["piece"], line["of"]) for line in told[2:4]] == [(0, 2), (1, 2)]
    assert all(line["seconds"] >= 0 for line in told[2:])
    with Path("/proc/self/status").open() as status:
        now = next(int(line.split()[1]) for line in status if line.startswith("VmRSS")) / 1024
    assert 0.5 * now < told[4]["peak_rss_mib"] <= told[5]["peak_rss_mib"]
    assert "peak_cuda_mib" not in told[4], "no GPU was used"
    assert [
        event.model_dump(mode="json", exclude_none=True) for event in read_events(tmp_path)
    ] == told


def test_each_line_is_there_at_once(tmp_path: Path) -> None:
    with record_events(tmp_path, "calibrate"):
        for count in range(1, 4):
            assert len(lines(tmp_path)) == count
            note_progress(tmp_path, "synthesis", count, 3)


def test_nobody_records(tmp_path: Path) -> None:
    note_started(tmp_path, "synthesis")
    note_progress(tmp_path, "synthesis", 0, 1)
    note_finished(tmp_path, "synthesis")
    assert not list(tmp_path.iterdir())


def test_all_goes_to_the_outermost_command(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with run.writing("report"), RunDirectory.open(run.root).writing("validate"):
        run.begin_stage("x")
    assert {line["command"] for line in lines(run.root)} == {"report"}
    assert short(run.root) == [("started", None), ("started", "x"), ("finished", None)]


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (DivergedError("it ran\naway"), "failed", "DivergedError: it ran away"),
        (RuntimeError("no kernel"), "failed", "RuntimeError: no kernel"),
        (KeyboardInterrupt(), "interrupted", "KeyboardInterrupt"),
        (Terminated(), "interrupted", "Terminated"),
        (ValueError("x" * 10_000), "failed", "ValueError: " + "x" * 1988),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_bad_end(tmp_path: Path, error: BaseException, kind: str, says: str) -> None:
    def calibrate() -> None:
        with record_events(tmp_path, "calibrate"):
            note_started(tmp_path, "synthesis")
            note_finished(tmp_path, "synthesis")
            note_started(tmp_path, "distillation")
            raise error

    with pytest.raises(type(error)):
        calibrate()
    last = lines(tmp_path)[-1]
    assert (last["event"], last["stage"], last["message"]) == (kind, "distillation", says)
    assert last["seconds"] >= 0
    assert last["peak_rss_mib"] > 1


def test_warnings_are_events_and_are_shown(tmp_path: Path) -> None:
    with pytest.warns(RuntimeWarning, match="slower") as shown, record_events(tmp_path, "export"):
        warnings.warn("it goes on,\nslower", RuntimeWarning, stacklevel=1)
    assert len(shown) == 1
    warning = lines(tmp_path)[1]
    assert (warning["event"], warning["message"]) == (
        "warning",
        "RuntimeWarning: it goes on, slower",
    )


def test_events_are_added_to_those_of_before(tmp_path: Path) -> None:
    for command in ("calibrate", "export"):
        with record_events(tmp_path, command):
            pass
    assert [line["command"] for line in lines(tmp_path)] == [
        *("calibrate", "calibrate", "export", "export")
    ]


@pytest.mark.parametrize("torn", [b'{"time": "20', b"\xff\xfe", b"{" * 200_000, b" "])
def test_a_torn_line_is_passed_over_and_cut_off(tmp_path: Path, torn: bytes) -> None:
    with record_events(tmp_path, "calibrate"):
        pass
    whole = (tmp_path / EVENTS).read_bytes()
    (tmp_path / EVENTS).write_bytes(whole + torn)
    assert [event.event for event in read_events(tmp_path)] == ["started", "finished"]
    with record_events(tmp_path, "export"):
        assert (tmp_path / EVENTS).read_bytes().startswith(whole + b"{")
    assert len(lines(tmp_path)) == 4


@pytest.mark.parametrize(
    "content", [b"", b"x" * 300_000, b"\n\n", b'{"event": "started"}\n', b"[]\n"]
)
def test_what_is_no_event_is_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / EVENTS).write_bytes(content)
    assert read_events(tmp_path) == []
    with record_events(tmp_path, "export"):
        pass
    assert [event.event for event in read_events(tmp_path)] == ["started", "finished"]


KILLED = """
import sys
from pathlib import Path
from mimiq_runtime.run_directory import RunDirectory
run = RunDirectory.open(Path(sys.argv[1]))
with run.writing("calibrate"):
    run.begin_stage("synthesis")
    while True:
        print(flush=True)
        sys.stdin.readline()
"""


def test_a_killed_process_is_told_of_by_the_next_one(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(run.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert short(run.root) == [("started", None), ("started", "synthesis")]
    with run.writing("export"):
        pass
    told = lines(run.root)
    assert [line["event"] for line in told[2:]] == ["abandoned", "started", "finished"]
    assert told[2]["message"].startswith(f"process {process.pid} on ")
    assert "(calibrate), since 20" in told[2]["message"]


def test_a_full_disk_is_one_sentence_and_leaves_whole_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes some bytes of a line, and no more."""
    write, room = os.write, 150

    def full(descriptor: int, data: bytes) -> int:
        nonlocal room
        if room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = min(room, len(data))
        room -= taken
        return write(descriptor, data[:taken])

    run = make_run(tmp_path / "run")
    monkeypatch.setattr(event_log.os, "write", full)
    with (
        pytest.raises(InvalidInputError, match=r"Cannot write .*events\.jsonl: No space left"),
        run.writing("export"),
    ):
        run.begin_stage("export/ort-cpu")
    monkeypatch.undo()
    assert len(lines(run.root)) == 1
    assert RunDirectory.open(run.root).damaged_files() == []


@pytest.mark.parametrize("kind", ["a link", "a pipe", "a folder"])
def test_only_a_plain_file_is_written(tmp_path: Path, kind: str) -> None:
    run = make_run(tmp_path / "run")
    place, outside = run.root / EVENTS, tmp_path / "outside"
    outside.write_text("kept\n")
    if kind == "a link":
        place.symlink_to(outside)
    elif kind == "a pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    with pytest.raises(InvalidInputError, match="Cannot write"), run.writing("export"):
        pytest.fail("it was written")
    assert read_events(run.root) == []
    assert outside.read_text() == "kept\n"


def test_inspect_shows_the_last_event_and_counts_no_foreign_file(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with contextlib.suppress(DivergedError), run.writing("export"):
        run.begin_stage("export/trt")
        raise DivergedError("a scale ran away")
    table = CliRunner().invoke(cli, ["inspect", str(run.root)], env={"COLUMNS": "200"})
    assert "export export/trt: failed: DivergedError: a scale ran away" in table.output
    result = CliRunner().invoke(cli, ["inspect", str(run.root), "--verify", "--json"])
    told = json.loads(result.output)
    assert told["last_event"]["event"] == "failed"
    assert told["verification"]["unrecorded"] == []


class Cuda:
    """As much of torch as the peak is asked of."""

    def __init__(self) -> None:
        self.cuda = self
        self.taken = [2**20, 3 * 2**20]

    def is_initialized(self) -> bool:
        return True

    def device_count(self) -> int:
        return 2

    def max_memory_allocated(self, device: int) -> int:
        return self.taken[device]

    def reset_peak_memory_stats(self, device: int) -> None:
        self.taken[device] = 0


def test_the_memory_of_a_gpu_is_that_of_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = Cuda()
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert peak_memory.peak_cuda_mib() == 3.0
    with record_events(tmp_path, "calibrate"):
        for stage, taken in (("synthesis", 5), ("distillation", 2)):
            note_started(tmp_path, stage)
            torch.taken[1] += taken * 2**20
            note_finished(tmp_path, stage)
    peaks = [event.peak_cuda_mib for event in read_events(tmp_path) if event.stage]
    assert peaks == [None, 5.0, None, 2.0]
    assert read_events(tmp_path)[2].memory.endswith(" MiB, 5 MiB of the GPU")
    assert EventKind.FINISHED in {event.event for event in read_events(tmp_path)}
