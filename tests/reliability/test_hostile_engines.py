"""Compiled engines of strangers: what was changed, planted or linked is not loaded.

TensorRT and the GPU are stand-ins: nothing here needs them, as nothing may reach them.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import onnx
import pytest
from _helpers import pretended_tensorrt
from _helpers.plans import add_plan
from _helpers.runs import make_run, write_classifier
from click.testing import CliRunner
from onnx import external_data_helper

from mimiq_deploy import building
from mimiq_deploy.cli import cli
from mimiq_deploy.engine_models import plan_for
from mimiq_runtime import ort_gpu, trt_session
from mimiq_runtime.edge import ort_model
from mimiq_runtime.edge.bundle import Bundle
from mimiq_runtime.edge.engine_cache import engine_cache
from mimiq_runtime.errors import EngineError, MimiqDeployError, OnnxModelError, RunDirectoryError
from mimiq_runtime.input_form import InputForm
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.session import open_session

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GPU = {"gpu": "Pretended", "capability": "9.0"}
FOLDER = "engines/pretended-sm90/trt"
PLAN, RECORD = f"{FOLDER}/engine.plan", f"{FOLDER}/engine.json"
TIMINGS = "engines/pretended-sm90/timing.cache"


@pytest.fixture(autouse=True)
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What reaches TensorRT, which is none."""
    calls: list[dict[str, Any]] = []

    def load(*_: Any, **others: Any) -> bytes:
        calls.append(others)
        raise EngineError("TensorRT was reached")

    for name in ("import_tensorrt", "import_polygraphy", "CudaRuntime", "build_engine"):
        monkeypatch.setattr(building, name, getattr(building, name))
    pretended_tensorrt.pretend()
    monkeypatch.setattr(building, "refit_plan", load)
    monkeypatch.setattr(trt_session, "import_tensorrt", lambda: None)
    monkeypatch.setattr(trt_session, "CudaRuntime", lambda: None)
    monkeypatch.setattr(trt_session, "deserialize", load)
    return calls


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = make_run(tmp_path / "run")
    write_classifier(run.path("export/trt/model.onnx"))
    run.record_files("export/trt/model.onnx")
    run.write_bytes(run.MODEL, b"the weights")
    add_plan(run, **GPU, refittable=True, hardware_compatibility="ampere-plus")
    return run


def edit_record(run: RunDirectory) -> None:
    """To let the plan run code of its own."""
    record = json.loads(run.path(RECORD).read_text())
    record["options"]["version_compatible"] = True
    run.path(RECORD).write_text(json.dumps(record))


def edit_plan(run: RunDirectory) -> None:
    run.path(PLAN).write_bytes(b"another plan, with a record that knows nothing of it")


def forget_record(run: RunDirectory) -> None:
    run.forget_files(RECORD)


def remove_record(run: RunDirectory) -> None:
    run.path(RECORD).unlink()


def link_record(run: RunDirectory) -> None:
    elsewhere = run.root.parent / "engine.json"
    run.path(RECORD).rename(elsewhere)
    (run.root / RECORD).symlink_to(elsewhere)


def take_the_plan_of_another_build(run: RunDirectory) -> None:
    """Both are recorded, as after a kill between the two."""
    edit_plan(run)
    run.record_files(PLAN)


FAULTS = [
    *(edit_record, edit_plan, forget_record, remove_record, link_record),
    take_the_plan_of_another_build,
]


def by_a_session(run: RunDirectory) -> None:
    open_session("trt", run.root / PLAN)


def by_a_bundle(run: RunDirectory) -> None:
    refused_by_command("bundle", run.root, "--engine", "trt", "-o", run.root.parent / "bundle")


def by_a_refit(run: RunDirectory) -> None:
    refused_by_command("build", run.root, "--refit")


def refused_by_command(*words: object) -> None:
    result = CliRunner().invoke(cli, [*map(str, words)])
    if result.exit_code == 0:
        return
    assert result.exit_code == 2, (result.output, result.exception)
    assert len([line for line in result.stderr.splitlines() if line]) == 1
    raise RunDirectoryError(result.stderr)


@pytest.mark.parametrize("read", [by_a_session, by_a_bundle, by_a_refit])
@pytest.mark.parametrize("damage", FAULTS)
def test_an_engine_that_is_not_what_was_recorded(
    damage: Callable[[RunDirectory], None],
    read: Callable[[RunDirectory], None],
    run: RunDirectory,
    loaded: list[dict[str, Any]],
) -> None:
    damage(run)
    with pytest.raises(MimiqDeployError, match=r"engine\.(plan|json)"):
        read(run)
    assert loaded == []


def test_what_is_recorded_is_read(run: RunDirectory, loaded: list[dict[str, Any]]) -> None:
    """So that the tests above refuse for the fault, and for nothing else."""
    by_a_bundle(run)
    for read in (by_a_session, by_a_refit):
        with pytest.raises(MimiqDeployError, match="TensorRT was reached"):
            read(run)
    assert loaded == [{"host_code": False}] * 2


@pytest.mark.parametrize("damage", [fault for fault in FAULTS if fault is not edit_plan])
def test_another_devices_record(damage: Callable[[RunDirectory], None], run: RunDirectory) -> None:
    """It decides which plan this device opens."""
    here = pretended_tensorrt.DEVICE.model_copy(update={"name": "Another"})
    assert plan_for(run, here, "trt") == PLAN
    damage(run)
    with pytest.raises(RunDirectoryError, match=r"engine\.(plan|json)"):
        plan_for(run, here, "trt")


@pytest.mark.parametrize("read", [by_a_session, by_a_refit])
@pytest.mark.parametrize("said", [None, "", "0", "yes"])
def test_code_in_a_plan_runs_only_where_the_user_says_so(
    said: str | None,
    read: Callable[[RunDirectory], None],
    run: RunDirectory,
    loaded: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever hands on a run can record what they like: the digests fit."""
    edit_record(run)
    run.record_files(RECORD)
    monkeypatch.delenv("MIMIQ_ALLOW_HOST_CODE", raising=False)
    if said is not None:
        monkeypatch.setenv("MIMIQ_ALLOW_HOST_CODE", said)
    with pytest.raises(MimiqDeployError, match=r"holds code for the CPU.*MIMIQ_ALLOW_HOST_CODE=1"):
        read(run)
    assert loaded == []
    monkeypatch.setenv("MIMIQ_ALLOW_HOST_CODE", "1")
    with pytest.raises(MimiqDeployError, match="TensorRT was reached"):
        read(run)
    assert loaded == [{"host_code": True}]


def plant(run: RunDirectory) -> None:
    run.path(TIMINGS).write_bytes(b"planted")


def change(run: RunDirectory) -> None:
    run.write_bytes(TIMINGS, b"as it was")
    plant(run)


def link(run: RunDirectory) -> None:
    """Recorded, even: its content fits, and a builder would write over the model."""
    (run.root / TIMINGS).symlink_to(run.root / run.MODEL)
    run.record_files(TIMINGS)


@pytest.mark.parametrize("how", [plant, change, link])
def test_a_timing_cache_that_is_not_the_runs_own(
    how: Callable[[RunDirectory], None], run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    how(run)
    lock = run.root / f"{TIMINGS}.lock"
    lock.symlink_to(run.root / run.MODEL)
    model = run.path(run.MODEL).read_bytes()
    build, read = building.build_engine, []

    def note(*arguments: Any, timing_cache: Path, **others: Any) -> Any:
        read.append(timing_cache.read_bytes() if timing_cache.exists() else None)
        return build(*arguments, timing_cache=timing_cache, **others)

    monkeypatch.setattr(building, "build_engine", note)
    for _ in range(2):
        assert CliRunner().invoke(cli, ["build", str(run.root)]).exit_code == 0
    # The second build reads what the first one measured.
    assert read == [model if how is link else None, b"half of it" + b"and the rest"]
    assert run.path(run.MODEL).read_bytes() == model
    assert not run.path(TIMINGS).is_symlink()
    assert RunDirectory.open(run.root).damaged_files() == []


def test_a_timing_cache_that_leads_out_of_the_run(run: RunDirectory, tmp_path: Path) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    (run.root / TIMINGS).symlink_to(tmp_path / "mine")
    with pytest.raises(RunDirectoryError, match="leads out of the run"):
        refused_by_command("build", run.root)
    assert (tmp_path / "mine").read_bytes() == b"mine"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the user's caches are."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model of somebody else, with an engine where the provider used to look for it."""
    path = tmp_path / "given" / "model.onnx"
    write_classifier(path)
    (path.parent / "ort-trt-cache").symlink_to(tmp_path)
    return path


def test_engines_of_onnx_runtime_are_the_users_own(home: Path, model: Path) -> None:
    folder = engine_cache(model, "1.30.0")
    assert folder is not None
    assert folder.parent == home / "mimiq-deploy" / "ort-trt"
    for part in (folder, folder.parent, folder.parents[1]):
        assert part.stat().st_mode & 0o777 == 0o700
    (folder / "kept.engine").touch()
    assert engine_cache(model, "1.30.0") == folder
    assert engine_cache(model, "1.31.0") != folder


def test_other_weights_have_other_engines(home: Path, model: Path) -> None:
    """The name of ONNX Runtime's file is made of the graph: it would load those of before."""
    content = onnx.load(model)
    for tensor in content.graph.initializer:
        external_data_helper.set_external_data(tensor, "model.onnx.data")
    onnx.save(content, model)
    first = engine_cache(model, "1.30.0")
    weights = (model.parent / "model.onnx.data").read_bytes()
    (model.parent / "model.onnx.data").write_bytes(weights[:-1] + b"\1")
    assert engine_cache(model, "1.30.0") != first
    (model.parent / "model.onnx.data").unlink()
    (model.parent / "model.onnx.data").symlink_to("/etc/hostname")
    with pytest.raises(OnnxModelError, match="link to another folder"):
        engine_cache(model, "1.30.0")


def of_others(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(os, "geteuid", lambda: folder.stat().st_uid + 1)


def for_all(folder: Path, patch: pytest.MonkeyPatch) -> None:
    folder.chmod(0o777)


def a_link(folder: Path, patch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("moved"))
    folder.symlink_to(folder.with_name("moved"))


def a_file(folder: Path, patch: pytest.MonkeyPatch) -> None:
    folder.rename(folder.with_name("moved"))
    folder.touch(0o600)


@pytest.mark.parametrize("level", [0, 1, 2])
@pytest.mark.parametrize("how", [of_others, for_all, a_link, a_file])
def test_a_folder_that_others_write_to(
    how: Callable[[Path, pytest.MonkeyPatch], None],
    level: int,
    home: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = engine_cache(model, "1.30.0")
    assert folder is not None
    how([folder, *folder.parents][level], monkeypatch)
    with pytest.raises(EngineError, match="not a folder that you alone can write to"):
        engine_cache(model, "1.30.0")


def test_without_a_home_engines_are_built_anew(
    home: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_text("in its place")
    assert engine_cache(model, "1.30.0") is None
    assert len(ort_model.providers_of("ort-trt", None)[0][1]) == 1


def test_a_relative_place_is_ignored(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(model.parent)
    monkeypatch.setenv("XDG_CACHE_HOME", "ort-trt-cache")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    folder = engine_cache(model, "1.30.0")
    assert folder is not None
    assert folder.is_relative_to(tmp_path / "me" / ".cache")


class StoppedError(Exception):
    """Where a session would be made."""


@pytest.mark.parametrize("opener", ["session", "bundle"])
def test_the_provider_is_given_that_folder(
    opener: str, home: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[Any] = []

    class Library:
        __version__ = "1.30.0"
        SessionOptions = type("Options", (), {})
        GraphOptimizationLevel = type("Level", (), {"ORT_DISABLE_ALL": 0})

        @staticmethod
        def InferenceSession(*_: Any, providers: Any, **__: Any) -> None:  # noqa: N802
            given.extend(providers)
            raise StoppedError

    def session(*_: Any, providers: Any, **__: Any) -> None:
        given.extend(providers)
        raise StoppedError

    if opener == "session":
        monkeypatch.setattr(ort_gpu, "_import_with", lambda _: Library)
        monkeypatch.setattr(ort_gpu, "tensorrt_mismatch", lambda: None)
        monkeypatch.setattr(ort_gpu, "OrtSession", session)
        with pytest.raises(StoppedError):
            open_session("ort-trt", model)
    else:
        monkeypatch.setattr(ort_model, "import_library", lambda _: Library)
        bundle = Bundle("ort-trt", model, InputForm.NORMALISED, None, None, False)
        with pytest.raises(EngineError, match="StoppedError"), ort_model.load_model(bundle):
            pass
    options = given[0][1]
    expected = str(engine_cache(model, "1.30.0"))
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == expected
    assert str(home) in expected
