"""Every file of a run has its digest, is compared with it before it is used, and can be checked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from _helpers.runs import ONNX_PATH, make_run
from click.testing import CliRunner, Result

from mimiq_deploy.cli import cli
from mimiq_runtime import run_directory
from mimiq_runtime.errors import DivergedError, RunDirectoryError
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from pathlib import Path


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return make_run(tmp_path / "run")


def verify(run: RunDirectory) -> Result:
    return CliRunner().invoke(cli, ["inspect", str(run.root), "--verify"])


def test_intact(run: RunDirectory) -> None:
    result = verify(run)
    assert result.exit_code == 0
    assert result.output.splitlines()[-1] == "3 of 3 files are as recorded."


@pytest.mark.parametrize("how", ["one bit", "cut short", "longer", "removed", "replaced by a link"])
@pytest.mark.parametrize("name", ["quantized.safetensors", "quantization.json", ONNX_PATH])
def test_damage_is_named(run: RunDirectory, how: str, name: str) -> None:
    path = run.path(name)
    content = path.read_bytes()
    match how:
        case "one bit":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "cut short":
            path.write_bytes(content[:-1])
        case "longer":
            path.write_bytes(content + b"\n")
        case "removed":
            path.unlink()
        case _:
            outside = run.root.parent / "outside"
            path.rename(outside)
            path.symlink_to(outside)
    result = verify(run)
    assert result.exit_code == 2
    verdict = "missing" if how == "removed" else "changed since recorded"
    assert result.output.splitlines()[-1].endswith(f"{name} {verdict}; make them again.")


def test_files_of_nobody_are_named_and_no_damage(run: RunDirectory) -> None:
    run.path("notes.txt").write_text("mine")
    result = verify(run)
    assert result.exit_code == 0
    assert result.output.rstrip().endswith("not recorded, of no account: notes.txt.")


@pytest.mark.parametrize("command", ["predict", "validate", "bench"])
def test_a_changed_model_is_not_loaded(
    run: RunDirectory, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnxruntime

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("the engine has read it")

    monkeypatch.setattr(onnxruntime, "InferenceSession", loaded)
    path = run.path(ONNX_PATH)
    path.write_bytes(path.read_bytes().replace(b"colours", b"COLOURS"))
    target = run.path("export/fp32/model.onnx")
    target.parent.mkdir()
    target.write_bytes(path.read_bytes())
    run.record_files("export/fp32/model.onnx")
    target.write_bytes(b"x" + path.read_bytes()[1:])
    extra = [str(tmp_path / "a.png")] if command == "predict" else []
    result = CliRunner().invoke(cli, [command, str(run.root), *extra])
    assert result.exit_code == 2, result.output
    assert "is damaged: its content is not what run.json has the SHA-256 of" in result.output


@pytest.mark.parametrize("name", ["quantized.safetensors", "quantization.json"])
def test_a_changed_file_is_not_read(run: RunDirectory, name: str) -> None:
    path = run.path(name)
    path.write_bytes(path.read_bytes().replace(b"head", b"tail"))
    read: Any = {
        "quantized.safetensors": lambda: run.read_tensors(name, made_by="calibrate"),
        "quantization.json": run.quantization_table,
    }[name]
    with pytest.raises(RunDirectoryError, match="is damaged"):
        read()


class TestInterruptedReplacement:
    """A recorded file gets another content, and the process ends between the two writes."""

    def interrupted(
        self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> RunDirectory:
        def die(*_: object, **__: object) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            if where == "before the rename":
                announce = RunDirectory.announce

                def announce_and_die(self: RunDirectory, name: str, temporary: Path) -> None:
                    announce(self, name, temporary)
                    die()

                patch.setattr(RunDirectory, "announce", announce_and_die)
            else:
                patch.setattr(RunDirectory, "record_files", die)
            with pytest.raises(Killed):
                run.write_json("quantization.json", {"tensors": []})
        return RunDirectory.open(run.root)

    @pytest.mark.parametrize("where", ["before the rename", "behind the rename"])
    def test_the_run_is_valid(
        self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        before = run.path("quantization.json").read_bytes()
        again = self.interrupted(run, monkeypatch, where)
        content = again.path("quantization.json").read_bytes()
        assert (content == before) == (where == "before the rename")
        assert again.damaged_files() == []
        assert verify(again).exit_code == 0
        assert again.quantization_table().tensors == [] or where == "before the rename"
        with again.writing("export"):
            assert again.manifest.replacing == {}
        assert "replacing" not in json.loads((run.root / "run.json").read_text())
        assert verify(again).exit_code == 0

    def test_neither_content_is_damage(
        self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        again = self.interrupted(run, monkeypatch, "behind the rename")
        again.path("quantization.json").write_text("{}")
        assert again.damaged_files() == ["quantization.json"]

    def test_what_it_left_is_swept(
        self, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        left = run.path("export/ort-cpu/.model.onnx.abcd_123.tmp")
        left.write_text("half")
        kept = run.path("export/.mine.tmp")
        kept.write_text("the user's")
        with run.writing("export"):
            assert not left.exists()
            assert kept.exists()


def test_no_replacement_is_announced_for_a_new_file(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    original = run_directory.write_json
    monkeypatch.setattr(
        run_directory,
        "write_json",
        lambda path, value: (written.append(dict(value)), original(path, value)),
    )
    run.write_json("parity.json", {"a": 1})
    run.write_json("parity.json", {"a": 2})
    assert [sorted(content.get("replacing", {})) for content in written] == [
        *([],),
        *(["parity.json"], []),
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_no_nan_is_written(run: RunDirectory, value: float) -> None:
    before = run.path("quantized.safetensors").read_bytes()
    with pytest.raises(DivergedError, match=r"head\.weight would hold NaN or infinity"):
        run.write_tensors(
            "quantized.safetensors", {"head.weight": np.array([1, value], np.float32)}
        )
    with pytest.raises(DivergedError, match="not finite"):
        run.write_metrics("distillation", 0, [{"loss": float(value)}])
    assert run.path("quantized.safetensors").read_bytes() == before
    assert run.damaged_files() == []


@pytest.mark.parametrize(
    "name", ["../outside", "/etc/passwd", "a/../../b", "", ".", "a//b", "images/../run.json"]
)
def test_names_that_climb_are_refused(run: RunDirectory, name: str) -> None:
    path = run.path("run.json")
    content = json.loads(path.read_text())
    content["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    path.write_text(json.dumps(content))
    result = verify(run)
    assert result.exit_code == 2
    assert "is not the path of a file inside the run" in result.output
