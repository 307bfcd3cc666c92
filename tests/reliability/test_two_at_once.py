"""Two processes on one run: the second is refused, with who holds it since when."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import pytest
from _helpers.runs import make_run
from click.testing import CliRunner

from mimiq_deploy.cli import cli
from mimiq_runtime.errors import InvalidInputError, RunLockedError
from mimiq_runtime.run_directory import RunDirectory, writes_run
from mimiq_runtime.run_lock import LOCK_FILE, LockHolder, hold_directory, lock_holder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HOLD = """
import sys, time
from pathlib import Path
from mimiq_runtime.run_lock import hold_directory
with hold_directory(Path(sys.argv[1]), "calibrate"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the run in ``tmp_path / "run"``."""
    make_run(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def record(pid: int, host: str = "") -> str:
    return json.dumps(
        {
            "pid": pid,
            "host": host or socket.gethostname(),
            "since": "2026-01-01T00:00:00+00:00",
            "purpose": "calibrate",
        }
    )


@pytest.mark.parametrize(
    "command",
    [
        ["export", "RUN"],
        ["build", "RUN"],
        ["validate", "RUN"],
        ["bench", "RUN"],
        ["report", "RUN"],
        ["calibrate", "vit_tiny_patch16_224", "-o", "RUN", "--resume"],
    ],
    ids=lambda command: command[0],
)
def test_every_command_that_writes_is_refused(
    tmp_path: Path,
    holder: subprocess.Popen[str],
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = (tmp_path / "run/run.json").read_bytes()
    if command[0] == "calibrate":
        from mimiq_deploy import calibration

        monkeypatch.setattr(calibration, "_load_model", _tiny_model)
    words = [str(tmp_path / "run") if word == "RUN" else word for word in command]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2, result.output
    assert result.output.count("\n") == 1
    for word in (f"process {holder.pid} on", socket.gethostname(), "(calibrate), since 20"):
        assert word in result.output
    assert (tmp_path / "run/run.json").read_bytes() == before


def _tiny_model(*_: object) -> tuple[object, object]:
    from _helpers.runs import make_manifest
    from _helpers.tiny_students import tiny_vit

    return tiny_vit(img_size=8, patch_size=4), make_manifest()


def test_a_report_of_several_runs_only_reads_them(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    """A page elsewhere is made of a run that another process writes; a page within it is not."""
    other = make_run(tmp_path / "other")
    before = {run: (run / "run.json").read_bytes() for run in (tmp_path / "run", other.root)}
    page = tmp_path / "page.html"
    done = CliRunner().invoke(cli, ["report", *map(str, before), "-o", str(page)])
    assert done.exit_code == 0, done.output
    assert page.exists()
    assert {run: (run / "run.json").read_bytes() for run in before} == before
    within = ["report", *map(str, before), "-o", str(tmp_path / "run/report.html")]
    refused = CliRunner().invoke(cli, within)
    assert refused.exit_code == 2
    assert refused.output.count("\n") == 1
    assert f"in use by process {holder.pid} on" in refused.output


def test_reading_is_not_refused(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    result = CliRunner().invoke(cli, ["inspect", str(tmp_path / "run"), "--verify", "--json"])
    assert result.exit_code == 0, result.output
    summary = json.loads(result.output)
    assert summary["writer"]["pid"] == holder.pid
    assert summary["verification"]["unrecorded"] == []


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_a_lock_ends_with_its_process(
    tmp_path: Path, holder: subprocess.Popen[str], kind: signal.Signals
) -> None:
    holder.send_signal(kind)
    holder.wait()
    with RunDirectory.open(tmp_path / "run").writing("export") as stale:
        assert stale is not None
        assert (stale.pid, stale.purpose, stale.has_ended) == (holder.pid, "calibrate", True)
        mine = lock_holder(tmp_path / "run")
        assert mine is not None
        assert mine.pid == os.getpid()
    assert not (tmp_path / "run" / LOCK_FILE).exists()


def test_inspect_says_that_a_writer_was_interrupted(
    tmp_path: Path, holder: subprocess.Popen[str]
) -> None:
    holder.kill()
    holder.wait()
    result = CliRunner().invoke(cli, ["inspect", str(tmp_path / "run"), "--verify"])
    assert result.exit_code == 0, result.output
    said = "".join(result.output.split())  # the table folds within words
    assert f"process{holder.pid}on" in said
    assert "itwasinterrupted" in said


def test_one_process_may_enter_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with run.writing("report"), run.writing("validate"), hold_directory(run.root, "x"):
        assert (run.root / LOCK_FILE).exists()
    assert not (run.root / LOCK_FILE).exists()


def test_what_another_process_wrote_since_is_not_lost(tmp_path: Path) -> None:
    first = make_run(tmp_path / "run")
    second = RunDirectory.open(first.root)
    with first.writing("validate"):
        first.write_json("parity.json", {"a": 1})
    with second.writing("bench"):
        second.write_json("bench.json", {"a": 2})
    files = RunDirectory.open(first.root).manifest.files
    assert {"parity.json", "bench.json"} <= files.keys()


def test_the_decorator(tmp_path: Path) -> None:
    @writes_run("measure")
    def measure(run: RunDirectory, number: int) -> tuple[int, str]:
        holder = lock_holder(run.root)
        assert holder is not None
        return number, holder.purpose

    assert measure(make_run(tmp_path / "run"), 3) == (3, "measure")


@pytest.mark.parametrize("content", ["", "{", "[" * 3000, '{"pid": -1}', "x" * 10_000])
def test_any_record_of_nobody_is_stale(tmp_path: Path, content: str) -> None:
    run = make_run(tmp_path / "run")
    (run.root / LOCK_FILE).write_text(content)
    with run.writing("export") as stale:
        assert stale is None


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    outside = tmp_path / "outside"
    outside.write_text("kept")
    (run.root / LOCK_FILE).symlink_to(outside)
    with pytest.raises(InvalidInputError, match="Cannot write"), run.writing("export"):
        pass
    assert outside.read_text() == "kept"


def test_a_lock_whose_file_was_removed_in_between_is_taken_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opened, removed by the holder that ends, then locked: two would hold two files."""
    path = tmp_path / "run" / LOCK_FILE
    flock, calls = fcntl.flock, 0

    def removes_first(descriptor: int, how: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.unlink()
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", removes_first)
    with hold_directory(tmp_path / "run", "export"):
        assert path.exists()
    assert calls == 2


class TestWithoutLocks:
    """A network file system that has none: the record alone has to do."""

    @pytest.fixture(autouse=True)
    def _none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> NoReturn:
            raise OSError(errno.ENOSYS, "no locks here")

        monkeypatch.setattr(fcntl, "flock", fail)

    def test_a_process_that_lives(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        (run.root / LOCK_FILE).write_text(record(os.getppid()))
        with pytest.raises(RunLockedError, match=f"process {os.getppid()} on"), run.writing("x"):
            pass

    def test_a_process_of_another_machine(self, tmp_path: Path) -> None:
        run = make_run(tmp_path / "run")
        (run.root / LOCK_FILE).write_text(record(1, "elsewhere"))
        with pytest.raises(RunLockedError, match=r"elsewhere.*remove .*\.lock"), run.writing("x"):
            pass

    def test_a_process_that_has_ended(self, tmp_path: Path) -> None:
        ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                               capture_output=True, text=True, check=True)  # fmt: skip
        run = make_run(tmp_path / "run")
        (run.root / LOCK_FILE).write_text(record(int(ended.stdout)))
        with run.writing("x") as stale:
            assert isinstance(stale, LockHolder)


def test_waiting_is_left_to_the_user(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    begun = time.monotonic()
    with pytest.raises(RunLockedError, match="wait for it, or end it"):
        hold_directory(tmp_path / "run", "x").__enter__()
    assert time.monotonic() - begun < 1
