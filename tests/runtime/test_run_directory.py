from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import SafetensorError, safe_open

from mimiq_runtime.errors import InvalidInputError, RunDirectoryError
from mimiq_runtime.manifest import (
    SCHEMA_VERSION,
    ModelRecord,
    Preprocessing,
    RunManifest,
    StageState,
)
from mimiq_runtime.run_directory import RunDirectory


def manifest() -> RunManifest:
    return RunManifest(
        created="2026-01-01T00:00:00Z",
        model=ModelRecord(
            name="deit_tiny_patch16_224",
            arguments={"depth": 2},
            num_classes=10,
            weights="a.pth",
            weights_sha256="0" * 64,
        ),
        preprocessing=Preprocessing(input_size=(3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3),
        recipe={"quantization": {"weight_bits": 4, "activation_bits": 8}},
        seed=7,
        environment={"python": "3.11"},
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory.create(tmp_path / "run", manifest())


def edit(run: RunDirectory, **changes: Any) -> None:
    path = run.path(RunDirectory.MANIFEST)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_was_created_is_what_is_opened(run: RunDirectory) -> None:
    again = RunDirectory.open(run.root)
    assert again.manifest == run.manifest == manifest()
    assert again.manifest.bits == "w4a8"
    assert json.loads((run.root / "run.json").read_text())["schema_version"] == SCHEMA_VERSION


def test_create_takes_an_empty_folder_and_no_other(tmp_path: Path) -> None:
    RunDirectory.create(tmp_path, manifest())
    with pytest.raises(RunDirectoryError, match=r"neither.*--resume"):
        RunDirectory.create(tmp_path, manifest())
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunDirectoryError, match="neither"):
        RunDirectory.create(tmp_path / "file", manifest())
    with pytest.raises(InvalidInputError, match="Cannot write"):
        RunDirectory.create(tmp_path / "file" / "run", manifest())


def test_open_where_there_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for root in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
        with pytest.raises(RunDirectoryError, match=r"is not a run directory: it has no run\.json"):
            RunDirectory.open(root)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe{}", b'{"schema_version": 1'], ids=["empty", "a", "b", "c"]
)
def test_damaged_json(run: RunDirectory, content: bytes) -> None:
    (run.root / "run.json").write_bytes(content)
    with pytest.raises(RunDirectoryError, match=r"run\.json cannot be read as JSON"):
        RunDirectory.open(run.root)


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"schema_version": "1"}'])
def test_json_that_is_no_manifest(run: RunDirectory, content: str) -> None:
    (run.root / "run.json").write_text(content)
    with pytest.raises(RunDirectoryError, match="no schema_version"):
        RunDirectory.open(run.root)


def test_a_newer_version_asks_for_an_update_before_any_other_fault(run: RunDirectory) -> None:
    edit(run, schema_version=SCHEMA_VERSION + 1, novelty=True)
    with pytest.raises(RunDirectoryError, match=rf"version {SCHEMA_VERSION + 1}.*update"):
        RunDirectory.open(run.root)


def test_unknown_and_wrong_keys_are_all_named(run: RunDirectory) -> None:
    edit(run, novelty=True, seed="many")
    with pytest.raises(RunDirectoryError, match="does not describe a run") as caught:
        RunDirectory.open(run.root)
    assert "novelty: unknown key" in str(caught.value)
    assert "seed: " in str(caught.value)


def test_stages_go_from_running_to_done_and_add_up_their_time(run: RunDirectory) -> None:
    assert not run.stage_is_done("synthesise")
    run.begin_stage("synthesise")
    assert not RunDirectory.open(run.root).stage_is_done("synthesise")
    run.finish_stage("synthesise", seconds=1.5, details={"loss": 0.25})
    again = RunDirectory.open(run.root)
    assert again.stage_is_done("synthesise")
    assert again.manifest.stages["synthesise"].details == {"loss": 0.25}
    again.begin_stage("synthesise")
    assert again.manifest.stages["synthesise"].state is StageState.RUNNING
    again.finish_stage("synthesise", seconds=2)
    assert RunDirectory.open(run.root).manifest.stages["synthesise"].seconds == 3.5


def test_recorded_files_and_their_damage(run: RunDirectory) -> None:
    for name in ("good.json", "changed.json", "lost.json"):
        run.write_json(f"sub/{name}", {"name": name})
    record = RunDirectory.open(run.root).manifest.files["sub/good.json"]
    content = (run.root / "sub/good.json").read_bytes()
    assert (record.sha256, record.bytes) == (hashlib.sha256(content).hexdigest(), len(content))
    assert run.damaged_files() == []
    (run.root / "sub/changed.json").write_text("{}")
    (run.root / "sub/lost.json").unlink()
    assert RunDirectory.open(run.root).damaged_files() == ["sub/changed.json", "sub/lost.json"]


def test_what_a_stage_forgets_may_go_and_what_was_lost_is_missed(run: RunDirectory) -> None:
    for name in ("export/a/old.data", "export/a/new.data", "export/ab/lost.data"):
        run.write_json(name, 1)
    run.forget_files("export/a/old.data", "export/a/never.data")
    run.path("export/a/old.data").unlink()
    run.path("export/ab/lost.data").unlink()
    assert list(run.manifest.files) == ["export/a/new.data", "export/ab/lost.data"]
    assert RunDirectory.open(run.root).damaged_files() == ["export/ab/lost.data"]


def test_existing_wants_the_file_and_its_record(run: RunDirectory) -> None:
    (run.root / "half.bin").write_bytes(b"not recorded")
    run.write_json("lost.json", {})
    (run.root / "lost.json").unlink()
    run.write_json("good.json", {})
    assert run.existing("good.json", made_by="x") == run.root / "good.json"
    for name in ("half.bin", "lost.json", "never.json"):
        with pytest.raises(RunDirectoryError, match=f"no finished {name}: run mimiq-deploy x"):
            run.existing(name, made_by="mimiq-deploy x")


def test_a_failed_record_leaves_the_old_manifest(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(InvalidInputError, match="No space left"):
            run.begin_stage("distil")
    assert run.manifest.stages == RunDirectory.open(run.root).manifest.stages == {}


@pytest.mark.parametrize(
    "array",
    [
        np.arange(12, dtype=np.float32).reshape(3, 4),
        np.arange(12, dtype=np.float32).reshape(3, 4).T,
        np.arange(12, dtype=np.int8).reshape(3, 4)[:, ::2],
        np.asfortranarray(np.arange(12, dtype=np.uint8).reshape(3, 4)),
        np.array(2.5),
    ],
    ids=["plain", "transposed", "strided", "fortran", "scalar"],
)
def test_tensors_come_back_whatever_their_memory_layout(
    run: RunDirectory, array: np.ndarray[Any, Any]
) -> None:
    run.write_tensors("t.safetensors", {"x": array}, {"format": "np"})
    (back,) = run.read_tensors("t.safetensors", made_by="x").values()
    assert (back.dtype, back.shape) == (array.dtype, array.shape)
    np.testing.assert_array_equal(back, array)
    with safe_open(run.path("t.safetensors"), framework="np") as file:
        assert file.metadata() == {"format": "np"}
    assert run.damaged_files() == []
    assert sorted(os.listdir(run.root)) == ["run.json", "t.safetensors"]


def test_tensors_that_cannot_be_written(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", fail)
    with pytest.raises(RunDirectoryError, match=r"Cannot write.*No space left"):
        run.write_tensors("t.safetensors", {"x": np.zeros(3)})
    assert os.listdir(run.root) == ["run.json"]


def test_damaged_tensors(run: RunDirectory) -> None:
    run.write_tensors("t.safetensors", {"x": np.zeros(100)})
    path = run.path("t.safetensors")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(RunDirectoryError, match=r"t\.safetensors is damaged"):
        run.read_tensors("t.safetensors", made_by="x")


def test_quantization_table(run: RunDirectory) -> None:
    with pytest.raises(RunDirectoryError, match=r"no finished quantization\.json"):
        run.quantization_table()
    row = {
        "name": "head.weight_quantizer",
        "kind": "weight",
        "bits": 4,
        "qmin": -8,
        "qmax": 7,
        "axis": 0,
        "scale": [0.5, 0.25],
    }
    run.write_json(RunDirectory.TABLE, {"tensors": [row]})
    (tensor,) = run.quantization_table().tensors
    assert (tensor.scale, tensor.grid.qmin, tensor.container) == ([0.5, 0.25], -8, "int8")
    run.write_json(RunDirectory.TABLE, {"tensors": [{**row, "bits": 9}]})
    with pytest.raises(RunDirectoryError, match=r"tensors\.0\.bits.*less than or equal to 8"):
        run.quantization_table()
