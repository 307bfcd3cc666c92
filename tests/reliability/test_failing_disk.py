"""A disk that fails at every write of a run in turn: one sentence, and what was there is whole."""

from __future__ import annotations

import errno
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from _helpers import pretended_tensorrt
from _helpers.tiny_students import tiny_vit
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from mimiq_calib.synthesis import sources
from mimiq_deploy import benchmarking, building, reporting
from mimiq_deploy.cli import cli
from mimiq_deploy.study import run_study
from mimiq_export import export_run
from mimiq_runtime.engine_record import PLAN, RECORD, recorded_engine
from mimiq_runtime.evaluation import EVALUATION
from mimiq_runtime.event_log import EVENTS
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator

ARCHITECTURE = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
RECIPE = {
    "name": "disk",
    "quantization": {"weight_bits": 4, "activation_bits": 4},
    "synthesis": {"source": "noise", "num_images": 4, "held_out": 2, "batch_size": 3},
    "observation": {"num_images": 2},
    "fine_tuning": "reconstruct-distill",
    "reconstruction": {"iterations": 1, "batch_size": 4, "views": 1, "precision": "fp32"},
    "distillation": {"epochs": 2, "batch_size": 4, "precision": "fp32"},
}
FAULTS = (errno.ENOSPC, errno.EROFS, errno.EIO)
CELL = re.compile(r"\d+/\d+ w\da\d-")
TIMES = re.compile(rb'"(seconds|created)": [^,\n]+|"version", "value": "[^"]*"')


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("disk")
    save_file(tiny_vit(**ARCHITECTURE).state_dict(), folder / "tiny.safetensors")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE))
    return folder


def calibrate(folder: Path, run: Path) -> Result:
    options = [("--model-arg", f"{key}={value}") for key, value in ARCHITECTURE.items()]
    return invoke(
        *("calibrate", "vit_tiny_patch16_224", "--checkpoint", folder / "tiny.safetensors"),
        *("--recipe", folder / "recipe.yaml", "--resume", "-o", run),
        *(part for pair in options for part in pair),
    )


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


def content(run: Path) -> dict[str, bytes]:
    files = {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}
    for name in ("run.json", EVENTS):
        files.pop(name, None)
    return files


@pytest.fixture(scope="module")
def whole(folder: Path) -> dict[str, bytes]:
    run = folder / "whole"
    assert calibrate(folder, run).exit_code == 0
    assert invoke("export", run).exit_code == 0
    return content(run)


class FailingDisk:
    """Each content of each file fails to be written once, and is written when it comes again.

    In turn the file cannot be flushed, cannot be renamed, or its folder cannot be flushed; the
    temporary file of each name cannot be made once, too.
    """

    def __init__(self, root: Path, patch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.failures = 0
        self._turn = itertools.cycle(["flush", "rename", "flush of the folder"])
        self._plan: dict[tuple[str, bytes], str] = {}
        self._failed: set[tuple[Any, ...]] = set()
        self._last: tuple[str, bytes] | None = None
        self._mkstemp, self._fsync, self._replace = tempfile.mkstemp, os.fsync, Path.replace
        patch.setattr(tempfile, "mkstemp", self.mkstemp)
        patch.setattr(os, "fsync", self.fsync)
        patch.setattr(Path, "replace", lambda path, target: self.replace(path, target))

    def mkstemp(self, **options: Any) -> tuple[int, str]:
        if options["dir"].is_relative_to(self.root):
            self._fail_once("temporary file", options["prefix"])
        return self._mkstemp(**options)

    def write_in_place(self, path: Path) -> None:
        """What another library does, which knows nothing of temporary files."""
        self._fail_once("write in place", path.name)

    def fsync(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_relative_to(self.root):
            if stat.S_ISDIR(os.fstat(descriptor).st_mode):
                if self._last is not None:
                    self._fail_as_planned("flush of the folder", self._last)
            elif ".tmp" in str(path):
                self._fail_as_planned("flush", self._key(path))
        self._fsync(descriptor)

    def replace(self, path: Path, target: Path) -> Path:
        if path.is_relative_to(self.root):
            if path.is_dir():
                # Where a folder is replaced, the old one has been put aside by then.
                if path.name == "new":
                    self._fail_once("folder", target, (path.parent / "old").exists())
            else:
                self._last = self._key(path)
                self._fail_as_planned("rename", self._last)
        return self._replace(path, target)

    def _key(self, path: Path) -> tuple[str, bytes]:
        # Times differ from one attempt to the next, and with them the digests of what holds them.
        return path.name.rsplit(".", 2)[0], hashlib.sha256(
            TIMES.sub(b"", path.read_bytes())
        ).digest()

    def _fail_as_planned(self, step: str, key: tuple[str, bytes]) -> None:
        if key not in self._plan:
            self._plan[key] = next(self._turn)
        if self._plan[key] == step:
            self._fail_once(step, *key)

    def _fail_once(self, *what: object) -> None:
        if what not in self._failed:
            self._failed.add(what)
            self.failures += 1
            code = FAULTS[self.failures % len(FAULTS)]
            raise OSError(code, os.strerror(code))


def until_it_succeeds(
    command: Any,
    disk: FailingDisk,
    run: Path | None = None,
    *,
    bundle: Path | None = None,
    exit_code: int = 0,
) -> int:
    """Call a command until the disk has failed at each of its writes; how often it did."""
    attempts = 0
    while True:
        failures = disk.failures
        result = command()
        if result.exit_code == exit_code:
            assert disk.failures == failures
            return attempts
        attempts += 1
        # One, and another where it is to be written down that the command failed.
        assert failures < disk.failures <= failures + 2, result.output
        assert attempts < 200
        check_refusal(result, run or disk.root)
        if bundle is not None:
            assert (bundle / "manifest.json").exists(), "what was there comes back"


def check_refusal(result: Result, run: Path) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    # A study tells which cell it is at.
    lines = [line for line in result.stderr.splitlines() if line and not CELL.match(line)]
    assert len(lines) == 1, lines
    assert lines[0].startswith("Error: Cannot write ")
    assert any(os.strerror(code) in lines[0] for code in FAULTS)
    assert not list(run.rglob("*.tmp")), "nothing half is left"
    assert not (run / ".lock").exists()
    if (run / "run.json").exists():
        assert RunDirectory.open(run).damaged_files() == []
    else:
        RunDirectory.check_new(run)


def test_every_write(
    folder: Path, whole: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = folder / "failing"
    # What is exported does not depend on the disk: once for each target is enough.
    original, exported = export_run.export_model, {}

    def once(model: Any, *, target: str, **others: Any) -> Any:
        if target not in exported:
            exported[target] = original(model, target=target, **others)
        return exported[target]

    monkeypatch.setattr(export_run, "export_model", once)
    with monkeypatch.context() as patch:
        disk = FailingDisk(run, patch)
        calibrations = until_it_succeeds(lambda: calibrate(folder, run), disk)
        before = content(run)
        exports = until_it_succeeds(lambda: invoke("export", run), disk)
    assert {name: data for name, data in content(run).items() if name in before} == before
    assert content(run) == whole
    assert invoke("inspect", run, "--verify").exit_code == 0
    # As many as there are writes: a test that injects nothing would pass.
    assert calibrations > 20
    assert exports > 8
    print(f"{calibrations} failed writes of calibrate, {exports} of export")


def remember(patch: pytest.MonkeyPatch, module: Any, name: str) -> None:
    """What a function says the first time, it says every time: no times that differ."""
    original, said = getattr(module, name), list[Any]()

    def once(*arguments: Any, **others: Any) -> Any:
        if not said:
            said.append(original(*arguments, **others))
        return said[0]

    patch.setattr(module, name, once)


def test_every_write_of_the_commands_behind_the_export(
    folder: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "disk"
    run = root / "run"
    shutil.copytree(folder / "whole", run)
    before = content(run)
    for module, name in (
        *((benchmarking, "benchmark_sessions"), (benchmarking, "_memory")),
        *((reporting, "render_page"), (reporting, "_try_to_look_inside")),
    ):
        remember(monkeypatch, module, name)
    junit, markdown = root / "parity.xml", root / "parity.md"
    commands = {
        "validate": (run, "--min-agreement", "0", "--junit", junit, "--markdown", markdown),
        "bench": (run, "--rounds", "4", "--batch-size", "1"),
        "report": (run,),
        "bundle": (run, "--engine", "ort-cpu", "-o", root / "bundle"),
        "bundle again": (run, "--engine", "ort-cpu", "-o", root / "bundle", "--force"),
        # Where its folder could not be flushed, the archive is there already.
        "bundle archive": (run, "--engine", "ort-cpu", "-o", root / "bundle.tar.gz", "--force"),
    }
    failures = {}
    with monkeypatch.context() as patch:
        disk = FailingDisk(root, patch)
        for name, arguments in commands.items():
            command = functools.partial(invoke, name.partition(" ")[0], *arguments)
            bundle = root / "bundle" if name == "bundle again" else None
            failures[name] = until_it_succeeds(command, disk, run, bundle=bundle)
            assert {key: data for key, data in content(run).items() if key in before} == before
            before = content(run)
            assert not list(root.rglob("*.tmp"))
    assert {"parity.json", "bench.json", "report.html"} <= before.keys()
    assert junit.exists()
    assert markdown.exists()
    assert invoke("inspect", run, "--verify").exit_code == 0
    assert min(failures.values()) >= 1, failures
    print(f"failed writes: {failures}")


class OneMoment(datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz: Any = None) -> OneMoment:
        return cls(2026, 1, 2, 3, 4, 5, tzinfo=tz)


def test_every_write_of_a_build(
    folder: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an engine that is rejected, of one that takes its place, and of one that replaces that."""
    run = tmp_path / "run"
    shutil.copytree(folder / "whole", run)
    for name in ("import_tensorrt", "import_polygraphy", "CudaRuntime", "build_engine"):
        monkeypatch.setattr(building, name, getattr(building, name))
    pretended_tensorrt.pretend()
    monkeypatch.setattr(pretended_tensorrt, "PAUSE", 0.0)
    monkeypatch.setattr(building, "datetime", OneMoment)
    engines = f"engines/{pretended_tensorrt.DEVICE.slug}"
    places = {name: f"{engines}/ort-cpu/{name}" for name in (building.REJECTED, PLAN, RECORD)}
    timings = f"{engines}/timing.cache"
    failures, before = {}, content(run)
    with monkeypatch.context() as patch:
        disk = FailingDisk(run, patch)
        for attempt, proved in (("rejected", False), ("first", True), ("second", True)):

            def build(
                *arguments: Any,
                timing_cache: Path,
                attempt: str = attempt,
                proved: bool = proved,
                build_engine: Any = pretended_tensorrt._build,
                **others: Any,
            ) -> Any:
                made = build_engine(*arguments, timing_cache=timing_cache, **others)
                timing_cache.write_text(attempt)
                disk.write_in_place(timing_cache.with_name(attempt))
                precision = made.precision.model_copy(update={"proved": proved})
                return replace(made, plan=attempt.encode(), precision=precision)

            patch.setattr(building, "build_engine", build)
            command = functools.partial(invoke, "build", run, "--target", "ort-cpu")
            failures[attempt] = until_it_succeeds(command, disk, exit_code=0 if proved else 1)
            after = content(run)
            changing = {timings, *places.values()}
            assert {n: d for n, d in after.items() if n not in changing} == before
            assert after[timings] == attempt.encode()
            assert (places[building.REJECTED] in after) == (not proved)
            assert (after.get(places[PLAN]) == attempt.encode()) == proved
    assert RunDirectory.open(run).damaged_files() == []
    assert recorded_engine(RunDirectory.open(run), places[PLAN]).precision.proved
    assert invoke("inspect", run, "--verify").exit_code == 0
    # The timing cache twice, what is written of the engine, and run.json after each and at the end.
    assert min(failures.values()) >= 5, failures
    print(f"failed writes of build: {failures}")


def test_every_write_of_a_study(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what it adds to the runs of its cells, which are written as those of ``calibrate``."""
    study, unseen = tmp_path / "study", 4
    monkeypatch.setattr(run_study, "UNSEEN", unseen)
    options = [("--model-arg", f"{key}={value}") for key, value in ARCHITECTURE.items()]
    command = functools.partial(
        invoke,
        *("study", "vit_tiny_patch16_224", "--checkpoint", folder / "tiny.safetensors"),
        *("--recipe", folder / "recipe.yaml", "--source", "noise", "--fine-tuning", "none"),
        *("--bits", "w4a4", "--bits", "w8a8", "-o", study),
        *(part for pair in options for part in pair),
    )
    assert command().exit_code == 0
    expected = content(study)
    added = ("study.json", "study.md", "study.png", "unseen-noise.safetensors")
    cells = [path.parent for path in study.glob(f"*/{RunDirectory.MANIFEST}")]
    for name in added:
        (study / name).unlink()
    for cell in cells:
        RunDirectory.open(cell).forget_files(EVALUATION)
        (cell / EVALUATION).unlink()
    remember(monkeypatch, run_study, "describe_machine")
    with monkeypatch.context() as patch:
        disk = FailingDisk(study, patch)
        failures = until_it_succeeds(command, disk, cells[0])
    assert not list(study.rglob("*.tmp"))
    found = content(study)
    assert found.keys() == expected.keys()
    assert {Path(name).name for name in found if found[name] != expected[name]} <= {EVENTS}
    for cell in cells:
        assert RunDirectory.open(cell).damaged_files() == []
    # The unseen images; of each cell its evaluation, run.json, and the report; the plot.
    assert failures >= 1 + 2 * (2 + 2) + 1
    print(f"{failures} failed writes of study")


def test_a_directory_that_vanishes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    original = sources.make_shard

    def make_and_remove(*arguments: Any, **others: Any) -> Any:
        shutil.rmtree(run)
        return original(*arguments, **others)

    monkeypatch.setattr(sources, "make_shard", make_and_remove)
    result = calibrate(folder, run)
    assert result.exit_code == 2
    assert f"The run directory {run} is not there any more" in result.stderr
    assert not run.exists(), "a run of half its files is not made up"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 KB of its own."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(mounted)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"a small file system cannot be mounted: {error}")
    if done.returncode != 0:
        pytest.skip(f"a small file system cannot be mounted: {done.stderr.strip()}")
    yield mounted
    subprocess.run(["umount", str(mounted)], check=True)


def remount(disk: Path, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(disk)], check=True)


def test_a_full_disk(folder: Path, whole: dict[str, bytes], small_disk: Path) -> None:
    run = small_disk / "run"
    size = 200
    refusals = 0
    while (result := calibrate(folder, run)).exit_code != 0:
        check_refusal_of_a_real_disk(result, run)
        size += 40
        refusals += 1
        remount(small_disk, f"size={size}k")
        assert size < 4000
    assert refusals >= 2
    calibrated = {name: data for name, data in whole.items() if not name.startswith("export")}
    assert content(run) == calibrated
    remount(small_disk, "ro")
    for command in ("export", "validate", "bench", "report"):
        result = invoke(command, run)
        assert result.exit_code == 2
        assert "Read-only file system" in result.stderr
    assert content(run) == calibrated
    remount(small_disk, "rw")


def check_refusal_of_a_real_disk(result: Result, run: Path) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    assert len([line for line in result.stderr.splitlines() if line]) == 1
    assert "has room" in result.stderr
    if (run / "run.json").exists():
        assert RunDirectory.open(run).damaged_files() == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into any directory")
def test_a_directory_without_permission(folder: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        result = calibrate(folder, tmp_path / "run")
    finally:
        tmp_path.chmod(0o700)
    assert result.exit_code == 2
    assert "Permission denied" in result.stderr
