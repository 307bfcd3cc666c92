"""Real processes, ended at random points by SIGKILL, SIGINT and SIGTERM.

After each of them the directory is valid; in the end what was resumed is bit-equal to what was not
disturbed. ``MIMIQ_KILLS=100`` for as many kills as docs/reliability.md speaks of; a few without.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from _helpers.tiny_students import tiny_vit
from _helpers.warm_server import WarmServer
from safetensors.torch import save_file

from mimiq_deploy.run_summary import verify_run
from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.event_log import EVENTS, read_events
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.run_lock import LOCK_FILE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

KILLS = int(os.environ.get("MIMIQ_KILLS", "6"))
KINDS = (signal.SIGKILL, signal.SIGINT, signal.SIGTERM)
ARCHITECTURE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
RECIPE = {
    "name": "killed",
    "quantization": {"weight_bits": 4, "activation_bits": 4},
    "synthesis": {
        "num_images": 6,
        "held_out": 2,
        "dead_leaves": 2,
        "batch_size": 2,
        "iterations": 4,
        "precision": "fp32",
    },
    "observation": {"num_images": 3, "batch_size": 2},
    "fine_tuning": "reconstruct-distill",
    "reconstruction": {"iterations": 2, "batch_size": 4, "views": 2, "precision": "fp32"},
    "distillation": {"epochs": 3, "batch_size": 2, "learning_rate": 1e-3, "precision": "fp32"},
}
# A machine with other work takes up to ten seconds for a kill and what comes after it.
pytestmark = pytest.mark.timeout(max(600, 20 * KILLS))
LONGEST_SERIES = 8
"""So many kills of one run, then it may finish."""

SAID = {
    signal.SIGINT: (130, "Error: Interrupted; "),
    signal.SIGTERM: (143, "Error: Terminated; "),
}
RESUME = "run the same command with --resume to go on."
AGAIN = "run the same command again."


@pytest.fixture(scope="module")
def server() -> Iterator[WarmServer]:
    with WarmServer() as warm:
        yield warm


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kills")
    save_file(tiny_vit().state_dict(), folder / "tiny.safetensors")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    return folder


def calibrate(folder: Path, run: Path) -> list[object]:
    arguments = [("--model-arg", f"{key}={value}") for key, value in ARCHITECTURE.items()]
    return [
        *("calibrate", "vit_tiny_patch16_224", "--checkpoint", folder / "tiny.safetensors"),
        *("--recipe", folder / "recipe.yaml", "--seed", 3, "--resume", "-o", run),
        *(part for pair in arguments for part in pair),
    ]


def export(run: Path) -> list[object]:
    return ["export", run]


@pytest.fixture(scope="module")
def undisturbed(server: WarmServer, folder: Path) -> tuple[Path, float, float]:
    """A run, and the seconds that its calibration and its export took."""
    run, seconds = folder / "undisturbed", []
    for arguments in (calibrate(folder, run), export(run)):
        begun = time.monotonic()
        assert server.wait(server.start(arguments, folder / "log")) == 0, said(folder)
        seconds.append(time.monotonic() - begun)
    return run, seconds[0], seconds[1]


def said(folder: Path) -> str:
    return (folder / "log").read_text()


def end_at_random(
    server: WarmServer,
    folder: Path,
    arguments: list[object],
    within: float,
    draw: random.Random,
    prepare: str | None = None,
) -> tuple[signal.Signals, int]:
    """Start a command and end it at a random moment; how, and its exit code."""
    kind = draw.choice(KINDS)
    pid = server.start(arguments, folder / "log", prepare)
    timer = threading.Timer(draw.uniform(0, within), end, (pid, kind))
    timer.start()
    code = server.wait(pid)
    timer.cancel()
    return kind, code


def end(pid: int, kind: signal.Signals) -> None:
    # Between the answer that a process has ended and the cancelled timer there is a moment.
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, kind)


def check_what_was_said(
    folder: Path, kind: signal.Signals, code: int, remedy: str, run: Path
) -> None:
    # Either it was too late, or too early for the program to answer.
    if code in (0, -kind):
        return
    # Ctrl-C a moment before the command begins, or after it has ended, is click's.
    if (kind, code) == (signal.SIGINT, 1) and said(folder).endswith("Aborted!\n"):
        return
    expected, words = SAID[kind]
    assert code == expected, said(folder)
    lines = [line for line in said(folder).splitlines() if line]
    what = [f"what was finished is kept: {remedy}"]
    if not (run / RunDirectory.MANIFEST).exists():
        what.append(f"nothing was written: {AGAIN}")
    # As long as no command has begun nothing is known of a run.
    assert lines[-1] in [f"{words}{one}" for one in what], lines
    assert "Traceback" not in said(folder)


def check_is_valid(run: Path) -> None:
    """The directory is one that can be started in, or a run whose files are all as recorded."""
    try:
        opened = RunDirectory.open(run)
    except RunDirectoryError:
        RunDirectory.check_new(run)
        return
    verified = verify_run(opened)
    assert verified.damaged == []
    for name in opened.manifest.files:
        if name.endswith(".safetensors"):
            assert opened.read_tensors(name, made_by="calibrate")
    for stage in ("synthesis", "reconstruction", "distillation"):
        opened.read_metrics(stage)
    check_events(run)


def check_events(run: Path) -> None:
    """Whole lines, but for one that was being written."""
    lines = (run / EVENTS).read_bytes().split(b"\n")[:-1] if (run / EVENTS).exists() else []
    assert [event.model_dump(mode="json", exclude_none=True) for event in read_events(run)] == [
        json.loads(line) for line in lines
    ]


def content(run: Path) -> dict[str, Any]:
    """All files but those with times in them."""
    return {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name not in {"run.json", EVENTS, "engine.json"}
    }


def test_calibrate(
    server: WarmServer, folder: Path, undisturbed: tuple[Path, float, float]
) -> None:
    kills = killed_in_series = series = 0
    run = folder / "killed"
    draw = random.Random(1)
    expected = {
        name: data for name, data in content(undisturbed[0]).items() if "export" not in name
    }
    while kills < KILLS or killed_in_series:
        if killed_in_series < LONGEST_SERIES and kills < KILLS:
            kind, code = end_at_random(server, folder, calibrate(folder, run), undisturbed[1], draw)
            check_what_was_said(folder, kind, code, RESUME, run)
        else:
            code = server.wait(server.start(calibrate(folder, run), folder / "log"))
            assert code == 0, said(folder)
        check_is_valid(run)
        if code == 0:
            assert content(run) == expected
            assert not (run / LOCK_FILE).exists()
            assert read_events(run)[-1].event == "finished"
            shutil.rmtree(run)
            killed_in_series, series = 0, series + 1
        else:
            kills, killed_in_series = kills + 1, killed_in_series + 1
    print(f"calibrate: {kills} kills, {series} runs resumed to the same bytes")


def end_and_repeat(
    server: WarmServer,
    folder: Path,
    arguments: list[object],
    run: Path,
    within: float,
    prepare: str | None = None,
) -> None:
    """End a command over what it has made before, which stays whole until the new one is."""
    expected = content(run)
    draw = random.Random(str(arguments[0]))
    kills = 0
    while kills < max(2, KILLS // 4):
        kind, code = end_at_random(server, folder, arguments, within, draw, prepare)
        check_what_was_said(folder, kind, code, AGAIN, run)
        check_is_valid(run)
        kills += code != 0
    assert server.wait(server.start(arguments, folder / "log", prepare)) == 0, said(folder)
    assert content(run) == expected
    assert server.wait(server.start(["inspect", run, "--verify"], folder / "log")) == 0
    print(f"{arguments[0]}: {kills} kills")


def test_export(server: WarmServer, folder: Path, undisturbed: tuple[Path, float, float]) -> None:
    run = folder / "exported"
    shutil.copytree(undisturbed[0], run)
    end_and_repeat(server, folder, export(run), run, undisturbed[2])


@pytest.mark.parametrize(
    ("command", "prepare"),
    [("build", "_helpers.pretended_tensorrt:pretend"), ("report", None)],
    ids=["build", "report"],
)
def test_what_is_made_of_an_export(
    server: WarmServer,
    folder: Path,
    undisturbed: tuple[Path, float, float],
    command: str,
    prepare: str | None,
) -> None:
    """First where there is nothing of it yet, then over what is there."""
    run = folder / command
    shutil.copytree(undisturbed[0], run)
    arguments: list[object] = [command, run]
    if command == "build":
        arguments += ["--target", "ort-cpu"]
    begun = time.monotonic()
    pid = server.start(arguments, folder / "log", prepare)
    timer = threading.Timer(0.3, end, (pid, signal.SIGKILL))
    timer.start()
    server.wait(pid)
    timer.cancel()
    check_is_valid(run)
    assert server.wait(server.start(arguments, folder / "log", prepare)) == 0, said(folder)
    end_and_repeat(server, folder, arguments, run, time.monotonic() - begun - 0.3, prepare)
