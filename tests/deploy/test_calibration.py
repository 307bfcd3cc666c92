from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from _helpers.tiny_students import images, tiny_vit
from PIL import Image
from safetensors.numpy import load_file
from safetensors.torch import save_file

from mimiq_calib import estimation, model_loading, observation, run_models
from mimiq_calib.distillation import distill as distilling
from mimiq_calib.recipe import FineTuning, Recipe, ReconstructionSettings
from mimiq_calib.reconstruction import reconstruct as reconstructing
from mimiq_calib.run_models import load_student, load_teacher, recipe_of
from mimiq_calib.synthesis import sources
from mimiq_calib.synthesis.dead_leaves import dead_leaves
from mimiq_deploy.calibration import CalibrationRequest, calibrate
from mimiq_runtime.atomic import sha256_of
from mimiq_runtime.errors import (
    CheckpointError,
    DatasetError,
    InvalidInputError,
    RunDirectoryError,
    UnsupportedModelError,
)
from mimiq_runtime.estimate import accuracy_kept, read_estimate
from mimiq_runtime.event_log import EVENTS, EventKind, read_events
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ARCHITECTURE = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Equal runs are equal to the bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Killed(BaseException):
    """The process ends here."""


def recipe(**distillation: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "test",
            "quantization": {"weight_bits": 4, "activation_bits": 4},
            "synthesis": {"num_images": 4, "batch_size": 2, "iterations": 2, "precision": "fp32"},
            "observation": {"num_images": 3, "batch_size": 2},
            "distillation": {
                "epochs": 2,
                "batch_size": 2,
                "learning_rate": 1e-3,
                "precision": "fp32",
            }
            | distillation,
        }
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(tiny_vit().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def request_(checkpoint: Path) -> CalibrationRequest:
    return CalibrationRequest(
        model="vit_tiny_patch16_224",
        recipe=recipe(),
        checkpoint=checkpoint,
        model_arguments=ARCHITECTURE,
        seed=3,
    )


@pytest.fixture(scope="module")
def finished(
    request_: CalibrationRequest, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    return calibrate(request_, tmp_path_factory.mktemp("runs") / "finished")


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the events, which tell times and are added to by every attempt."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != EVENTS
    }


def metrics_of(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.path(run.METRICS).read_text().splitlines()]


class TestFinishedRun:
    def test_files(self, finished: RunDirectory) -> None:
        expected = {
            "model.safetensors",
            "quantized.safetensors",
            "quantization.json",
            "metrics.jsonl",
            "images/shard-00000.safetensors",
            "images/shard-00001.safetensors",
            "images/preview.png",
        }
        assert set(contents(finished.root)) == expected | {"run.json"}
        assert set(finished.manifest.files) == expected

    def test_a_run_without_the_units_of_heads_is_read(
        self, finished: RunDirectory, tmp_path: Path
    ) -> None:
        """As versions before them wrote it."""
        older = RunDirectory.open(Path(shutil.copytree(finished.root, tmp_path / "run")))
        learned = older.read_tensors(RunDirectory.QUANTIZED, made_by="calibrate")
        units = [name for name in learned if name.endswith(".head_unit")]
        assert len(units) == ARCHITECTURE["depth"]
        older.write_tensors(
            RunDirectory.QUANTIZED, {k: v for k, v in learned.items() if k not in units}
        )
        given = [load_student(run)(images(2)) for run in (older, finished)]
        assert torch.equal(*given)

    def test_digests(self, finished: RunDirectory) -> None:
        opened = RunDirectory.open(finished.root)
        assert opened.manifest == finished.manifest
        assert opened.damaged_files() == []
        for name, record in opened.manifest.files.items():
            assert record.sha256 == sha256_of(finished.root / name)
            assert record.bytes == (finished.root / name).stat().st_size

    def test_stages(self, finished: RunDirectory) -> None:
        stages = finished.manifest.stages
        assert list(stages) == ["synthesis", "observation", "distillation"]
        assert all(stage.state == "done" and stage.seconds > 0 for stage in stages.values())
        details = stages["distillation"].details
        assert details["epoch"] == 1
        assert set(details) == {"epoch", "loss", "logit", "structure", "agreement"}

    def test_manifest(self, finished: RunDirectory, request_: CalibrationRequest) -> None:
        manifest = finished.manifest
        assert manifest.model.name == "vit_tiny_patch16_224"
        assert manifest.model.arguments == ARCHITECTURE
        assert manifest.model.num_classes == 10, "as the checkpoint's classifier says"
        assert manifest.model.weights == "tiny.safetensors"
        assert manifest.model.labels is None
        assert manifest.seed == 3
        assert manifest.bits == "w4a4"
        assert manifest.preprocessing.input_size == (3, 32, 32)
        assert recipe_of(finished) == request_.recipe
        assert {"torch", "timm", "mimiq-deploy"} <= manifest.environment.keys()

    def test_model_is_the_checkpoint(self, finished: RunDirectory, checkpoint: Path) -> None:
        stored, given = load_file(finished.path("model.safetensors")), load_file(checkpoint)
        assert stored.keys() == given.keys()
        assert all(np.array_equal(stored[name], value) for name, value in given.items())
        with torch.no_grad():
            torch.testing.assert_close(load_teacher(finished)(images(2)), tiny_vit()(images(2)))

    def test_images(self, finished: RunDirectory) -> None:
        shards = [load_file(finished.path(f"images/shard-0000{n}.safetensors")) for n in (0, 1)]
        for shard in shards:
            assert shard["images"].shape == (2, 3, 32, 32)
            assert shard["images"].dtype == np.uint8
            assert shard["labels"].shape == (2,)
        assert not np.array_equal(shards[0]["images"], shards[1]["images"])
        with Image.open(finished.path("images/preview.png")) as preview:
            assert preview.size == (4 * 34 + 2, 36)

    def test_metrics(self, finished: RunDirectory) -> None:
        records = metrics_of(finished)
        assert [(r["stage"], r["piece"]) for r in records] == [
            *[("synthesis", 0)] * 2,
            *[("synthesis", 1)] * 2,
            ("distillation", 0),
            ("distillation", 1),
        ]

    def test_table_is_the_students(self, finished: RunDirectory) -> None:
        tensors = load_file(finished.path("quantized.safetensors"))
        rows = finished.quantization_table().tensors
        assert len(rows) == 10 * 2 + 2 * 4
        assert {f"{row.name}.scale" for row in rows} == {
            name for name in tensors if name.endswith(".scale")
        }
        for row in rows:
            scale = tensors[f"{row.name}.scale"]
            np.testing.assert_array_equal(np.float32(row.scale), scale)
            assert (scale > 0).all()
            assert (row.axis == 0) == (row.kind == "weight") == (scale.ndim == 1)

    def test_student_is_like_its_teacher(self, finished: RunDirectory) -> None:
        student, teacher = load_student(finished), load_teacher(finished)
        with torch.no_grad():
            x = images(5)
            difference = (student(x) - teacher(x)).square().mean() / teacher(x).var()
        assert 0 < difference < 1

    def test_the_same_again(
        self, finished: RunDirectory, request_: CalibrationRequest, tmp_path: Path
    ) -> None:
        before, after = contents(finished.root), contents(calibrate(request_, tmp_path).root)
        different = [name for name in before if before[name] != after[name]]
        assert different == ["run.json"], "which tells times"

    def test_another_seed(
        self, finished: RunDirectory, request_: CalibrationRequest, tmp_path: Path
    ) -> None:
        other = calibrate(replace(request_, seed=4), tmp_path)
        for name in ("images/shard-00000.safetensors", "quantized.safetensors"):
            assert other.path(name).read_bytes() != finished.path(name).read_bytes()
        assert (
            other.path("model.safetensors").read_bytes()
            == finished.path("model.safetensors").read_bytes()
        )


def skipped(folder: Path) -> list[tuple[str | None, int | None, int | None]]:
    return [
        (event.stage, event.piece, event.of)
        for event in read_events(folder)
        if event.event is EventKind.SKIPPED
    ]


class TestResuming:
    def resumed_equals(
        self, finished: RunDirectory, request: CalibrationRequest, folder: Path
    ) -> RunDirectory:
        torch.rand(3)
        run = calibrate(request, folder, resume=True)
        for name in (
            "quantized.safetensors",
            "quantization.json",
            "metrics.jsonl",
            "images/preview.png",
            "images/shard-00001.safetensors",
        ):
            assert run.path(name).read_bytes() == finished.path(name).read_bytes(), name
        assert set(contents(folder)) == set(contents(finished.root)), "no left-overs"
        assert run.damaged_files() == []
        assert run.manifest.stages.keys() == finished.manifest.stages.keys()
        return run

    @pytest.mark.parametrize("step", [0, 1, 2, 3], ids="synthesis step {}".format)
    def test_in_the_middle_of_synthesis(
        self,
        finished: RunDirectory,
        request_: CalibrationRequest,
        tmp_path: Path,
        step: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        calls = 0
        original = sources.synthesise_batch

        def dying(*arguments: Any, advance: Any, **others: Any) -> Any:
            def count(steps: int, note: str) -> None:
                nonlocal calls
                if calls == step:
                    raise Killed
                calls += 1
                advance(steps, note)

            return original(*arguments, advance=count, **others)

        with monkeypatch.context() as patch:
            patch.setattr(sources, "synthesise_batch", dying)
            with pytest.raises(Killed):
                calibrate(request_, tmp_path)
        interrupted = RunDirectory.open(tmp_path)
        assert interrupted.manifest.stages["synthesis"].state == "running"
        assert ("images/shard-00000.safetensors" in interrupted.manifest.files) == (step >= 2)
        self.resumed_equals(finished, request_, tmp_path)

    def test_finished_shards_are_not_made_again(
        self,
        finished: RunDirectory,
        request_: CalibrationRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        made: list[int] = []
        original = sources.make_shard

        def second_dies(*arguments: Any, **others: Any) -> Any:
            made.append(arguments[3].first)
            if len(made) == 2:
                raise Killed
            return original(*arguments, **others)

        monkeypatch.setattr(sources, "make_shard", second_dies)
        with pytest.raises(Killed):
            calibrate(request_, tmp_path)
        self.resumed_equals(finished, request_, tmp_path)
        assert made == [0, 2, 2]
        assert skipped(tmp_path) == [("synthesis", 0, 2)]

    def test_what_is_finished_is_told(
        self, finished: RunDirectory, request_: CalibrationRequest, tmp_path: Path
    ) -> None:
        shutil.copytree(finished.root, tmp_path / "run")
        (tmp_path / "run" / EVENTS).unlink()
        calibrate(request_, tmp_path / "run", resume=True)
        assert skipped(tmp_path / "run") == [
            (stage, None, None) for stage in finished.manifest.stages
        ]

    @pytest.mark.parametrize("epoch", [0, 1])
    def test_after_an_epoch(
        self,
        finished: RunDirectory,
        request_: CalibrationRequest,
        tmp_path: Path,
        epoch: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        original = distilling.save_checkpoint

        def save_and_die(*arguments: Any, next_epoch: int) -> None:
            original(*arguments, next_epoch=next_epoch)
            if next_epoch == epoch + 1:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(distilling, "save_checkpoint", save_and_die)
            with pytest.raises(Killed):
                calibrate(request_, tmp_path)
        interrupted = RunDirectory.open(tmp_path)
        assert interrupted.manifest.stages["distillation"].state == "running"
        assert (tmp_path / "checkpoints/distillation.safetensors").exists()
        self.resumed_equals(finished, request_, tmp_path)
        assert ("distillation", epoch, 2) in skipped(tmp_path)

    @pytest.mark.parametrize("epoch", [0, 1])
    def test_what_was_observed_is_not_observed_again(
        self,
        finished: RunDirectory,
        request_: CalibrationRequest,
        tmp_path: Path,
        epoch: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def die(*_: Any, **__: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(distilling, "_mean_metrics" if epoch else "_make_optimizer", die)
            with pytest.raises(Killed):
                calibrate(request_, tmp_path)
        before = RunDirectory.open(tmp_path).manifest.stages["observation"]
        with monkeypatch.context() as patch:
            # Before the optimiser there is no checkpoint: then it is.
            patch.setattr(observation, "observe_activations", die)
            if epoch == 0:
                with pytest.raises(Killed):
                    calibrate(request_, tmp_path, resume=True)
            else:
                self.resumed_equals(finished, request_, tmp_path)
                after = RunDirectory.open(tmp_path).manifest.stages["observation"]
                assert after == before

    def test_losses_are_told_after_a_kill_behind_the_last_epoch(
        self,
        finished: RunDirectory,
        request_: CalibrationRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def die(*_: Any, **__: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(run_models, "save_student", die)
            with pytest.raises(Killed):
                calibrate(request_, tmp_path)
        run = self.resumed_equals(finished, request_, tmp_path)
        details = run.manifest.stages["distillation"].details
        assert details == finished.manifest.stages["distillation"].details
        assert details["epoch"] == 1

    def test_after_nothing_was_written_yet(
        self, finished: RunDirectory, request_: CalibrationRequest, tmp_path: Path
    ) -> None:
        self.resumed_equals(finished, request_, tmp_path / "new")

    def test_a_finished_run_is_left_alone(
        self, finished: RunDirectory, request_: CalibrationRequest
    ) -> None:
        before = contents(finished.root)
        assert calibrate(request_, finished.root, resume=True).manifest == finished.manifest
        assert contents(finished.root) == before

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"seed": 4}, "seed"),
            ({"recipe": recipe(epochs=3)}, "recipe"),
            ({"preprocessing": {"crop_pct": 1.0}}, "preprocessing"),
            ({"labels": [str(n) for n in range(10)]}, "model"),
            ({"model_arguments": ARCHITECTURE | {"drop_rate": 0.1}}, "model"),
        ],
        ids=["seed", "recipe", "preprocessing", "labels", "arguments"],
    )
    def test_other_choices_are_refused(
        self,
        finished: RunDirectory,
        request_: CalibrationRequest,
        change: dict[str, Any],
        named: str,
    ) -> None:
        before = contents(finished.root)
        with pytest.raises(RunDirectoryError, match=f"another {named}"):
            calibrate(replace(request_, **change), finished.root, resume=True)
        assert contents(finished.root) == before

    def test_other_weights_are_refused(
        self, finished: RunDirectory, request_: CalibrationRequest, tmp_path: Path
    ) -> None:
        weights = tiny_vit().state_dict()
        weights["head.bias"][0] += 1
        save_file(weights, tmp_path / "tiny.safetensors")
        other = replace(request_, checkpoint=tmp_path / "tiny.safetensors")
        with pytest.raises(RunDirectoryError, match="another model"):
            calibrate(other, finished.root, resume=True)

    def test_tuples_among_the_arguments_are_the_same_after_json(
        self, request_: CalibrationRequest, tmp_path: Path
    ) -> None:
        request = replace(
            request_, recipe=recipe(epochs=0), model_arguments=ARCHITECTURE | {"img_size": (32, 32)}
        )
        calibrate(request, tmp_path)
        calibrate(request, tmp_path, resume=True)

    def test_a_shard_that_was_removed_is_named(
        self, request_: CalibrationRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def die(*_arguments: Any, **_others: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(distilling, "distill", die)
            with pytest.raises(Killed):
                calibrate(request_, tmp_path)
        (tmp_path / "images/shard-00001.safetensors").unlink()
        with pytest.raises(RunDirectoryError, match="shard-00001"):
            calibrate(request_, tmp_path, resume=True)


@pytest.fixture(scope="module")
def both(request_: CalibrationRequest) -> CalibrationRequest:
    """Reconstruction, distillation and an estimate."""
    chosen = recipe().model_copy(
        update={
            "fine_tuning": FineTuning.RECONSTRUCT_DISTILL,
            "reconstruction": ReconstructionSettings(
                iterations=2, batch_size=4, views=2, learning_rate=1e-3, precision="fp32"
            ),
            "synthesis": recipe().synthesis.model_copy(update={"held_out": 3, "dead_leaves": 2}),
        }
    )
    return replace(request_, recipe=chosen)


@pytest.fixture(scope="module")
def whole(both: CalibrationRequest, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    return calibrate(both, tmp_path_factory.mktemp("runs") / "whole")


class TestFineTuningAndEstimate:
    """Reconstruction before distillation, and the estimate behind both."""

    def test_stages_and_files(self, whole: RunDirectory) -> None:
        stages = whole.manifest.stages
        assert list(stages) == [
            *("synthesis", "observation", "reconstruction", "distillation", "estimate")
        ]
        assert all(stage.state == "done" for stage in stages.values())
        assert stages["reconstruction"].details["blocks"] == 4
        added = {
            "estimate.json",
            "images/shard-00003.safetensors",
            "images/dead-leaves.safetensors",
        }
        assert added <= set(whole.manifest.files)
        assert whole.damaged_files() == []
        assert not any(whole.path("checkpoints").iterdir())
        links = [r["link"] for r in metrics_of(whole) if r["stage"] == "reconstruction"]
        assert links == ["stem", "blocks.0", "blocks.1", "tail"]

    def test_events(self, whole: RunDirectory) -> None:
        events = [event for event in read_events(whole.root) if event.stage is not None]
        ends = [event for event in events if event.event == "finished"]
        first_stage, *others = whole.manifest.stages
        assert [event.stage for event in ends] == [first_stage, "dead-leaves", *others]
        assert all(event.peak_rss_mib is not None for event in ends)
        shards = len(list(whole.path("images").glob("shard-*")))
        for stage, pieces in (
            *(("synthesis", shards), ("dead-leaves", 1)),
            *(("reconstruction", 4), ("distillation", 2)),
        ):
            own = [event for event in events if event.stage == stage]
            told = [(event.piece, event.of) for event in own[1:-1]]
            assert told == [(piece, pieces) for piece in range(pieces)], stage
            assert [own[0].event, own[-1].event] == ["started", "finished"]
            seconds = [event.seconds or 0.0 for event in own[1:]]
            assert seconds == sorted(seconds)
        first, last = read_events(whole.root)[0], read_events(whole.root)[-1]
        assert [first.event, last.event] == ["started", "finished"]
        assert first.stage is last.stage is None

    def test_estimate_is_of_images_that_were_held_out(self, whole: RunDirectory) -> None:
        estimate = read_estimate(whole)
        assert estimate is not None
        assert (estimate.images, estimate.source) == (3, "mimiq")
        shards = [load_file(whole.path(f"images/shard-0000{n}.safetensors")) for n in range(4)]
        every = np.concatenate([shard["images"] for shard in shards])
        assert len(every) == 4 + 3
        scale = whole.manifest.preprocessing
        mean, std = (np.array(v).reshape(3, 1, 1) for v in (scale.mean, scale.std))
        x = torch.tensor((every[4:] / 255 - mean) / std, dtype=torch.float32)
        with torch.no_grad():
            exact, given = load_teacher(whole)(x).numpy(), load_student(whole)(x).numpy()
        assert estimate.accuracy_kept == pytest.approx(accuracy_kept(exact, given), abs=1e-3)
        assert estimate.logits.mean_abs_error == pytest.approx(np.abs(exact - given).mean(), 0.02)

    def test_held_out_images_change_nothing_else(
        self, whole: RunDirectory, both: CalibrationRequest, tmp_path: Path
    ) -> None:
        synthesis = both.recipe.synthesis.model_copy(update={"held_out": 0})
        without = both.recipe.model_copy(update={"synthesis": synthesis})
        run = calibrate(replace(both, recipe=without), tmp_path)
        assert read_estimate(run) is None
        for name in ("quantized.safetensors", "images/shard-00001.safetensors"):
            assert run.path(name).read_bytes() == whole.path(name).read_bytes()

    def test_dead_leaves_are_among_the_images(
        self, whole: RunDirectory, both: CalibrationRequest, tmp_path: Path
    ) -> None:
        """They change what is learned, they are those of the seed, and a resumed run reads them."""
        stored = load_file(whole.path("images/dead-leaves.safetensors"))["images"]
        np.testing.assert_array_equal(stored, dead_leaves(2, (3, 32, 32), seed=3).numpy())
        synthesis = both.recipe.synthesis.model_copy(update={"dead_leaves": 0})
        without = both.recipe.model_copy(update={"synthesis": synthesis})
        run = calibrate(replace(both, recipe=without), tmp_path)
        assert "images/dead-leaves.safetensors" not in run.manifest.files
        ours, theirs = (r.path("quantized.safetensors").read_bytes() for r in (whole, run))
        assert ours != theirs

    @pytest.mark.parametrize(
        ("module", "function", "call"),
        [
            (reconstructing, "save_checkpoint", 2),
            (distilling, "distill", 1),
            (distilling, "save_checkpoint", 1),
            (estimation, "estimate_cost", 1),
        ],
        ids=["reconstruction", "before distillation", "distillation", "estimate"],
    )
    def test_resumed(
        self,
        whole: RunDirectory,
        both: CalibrationRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        module: ModuleType,
        function: str,
        call: int,
    ) -> None:
        original, calls = getattr(module, function), 0

        def dying(*arguments: Any, **others: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls == call:
                raise Killed
            return original(*arguments, **others)

        with monkeypatch.context() as patch:
            patch.setattr(module, function, dying)
            with pytest.raises(Killed):
                calibrate(both, tmp_path)
        run = calibrate(both, tmp_path, resume=True)
        for name in ("quantized.safetensors", "metrics.jsonl", "estimate.json"):
            assert run.path(name).read_bytes() == whole.path(name).read_bytes(), name
        assert set(contents(tmp_path)) == set(contents(whole.root))
        assert list(run.manifest.stages) == list(whole.manifest.stages)
        before = contents(tmp_path)
        calibrate(both, tmp_path, resume=True)
        assert contents(tmp_path) == before, "a finished run is left alone"

    @pytest.mark.parametrize("value", list(FineTuning))
    def test_each_way_trains_what_it_says(
        self, both: CalibrationRequest, tmp_path: Path, value: FineTuning
    ) -> None:
        chosen = both.recipe.model_copy(update={"fine_tuning": value})
        run = calibrate(replace(both, recipe=chosen), tmp_path)
        trained = {record["stage"] for record in metrics_of(run)} - {"synthesis"}
        expected = {"reconstruction"} if value.reconstructs else set()
        assert trained == expected | ({"distillation"} if value.distills else set())
        assert read_estimate(run) is not None

    def test_faithful(self, both: CalibrationRequest, tmp_path: Path) -> None:
        """Weight scales are those of the weights as they ended, and quantization.json says so."""
        content = both.recipe.model_dump(mode="json") | {"preset": "faithful"}
        content["quantization"] = {"weight_bits": 4, "activation_bits": 4}
        run = calibrate(replace(both, recipe=Recipe.model_validate(content)), tmp_path)
        tensors = load_file(run.path("quantized.safetensors"))
        for row in run.quantization_table().tensors:
            if row.kind == "weight":
                weight = tensors[row.name.replace("_quantizer", "")]
                largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
                np.testing.assert_allclose(np.float32(row.scale), 2 * largest / 15, rtol=1e-6)
            assert (row.qmin, row.qmax) == (-8, 7)
        with torch.no_grad():
            difference = (load_student(run)(images(5)) - load_teacher(run)(images(5))).square()
        assert torch.isfinite(difference).all()

    def test_layer_bits_reach_the_table(self, both: CalibrationRequest, tmp_path: Path) -> None:
        content = recipe(epochs=0).model_dump(mode="json")
        content["quantization"]["layer_bits"] = {"*.fc2": "w8a6"}
        run = calibrate(replace(both, recipe=Recipe.model_validate(content)), tmp_path)
        rows = [row for row in run.quantization_table().tensors if ".fc2." in row.name]
        assert sorted((row.kind, row.bits) for row in rows) == [
            *2 * [("activation", 6)],
            *2 * [("weight", 8)],
        ]

    def test_a_pattern_that_matches_nothing(self, both: CalibrationRequest, tmp_path: Path) -> None:
        content = recipe().model_dump(mode="json")
        content["quantization"]["layer_bits"] = {"fc2": "a8"}
        with pytest.raises(InvalidInputError, match="no layer of this model matches 'fc2'"):
            calibrate(replace(both, recipe=Recipe.model_validate(content)), tmp_path / "run")
        assert not (tmp_path / "run").exists(), "refused before anything is made"


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "occupied", "error", "match"),
        [
            ({}, True, RunDirectoryError, "new or an empty directory"),
            ({"preprocessing": {"nonsense": 1}}, False, InvalidInputError, "nonsense"),
            ({"labels": ["a", "b"]}, False, InvalidInputError, "1000 classes, and 2 labels"),
            ({"model": "resnet18", "model_arguments": {}}, False, UnsupportedModelError, "ResNet"),
            ({"layer_bits": {"nothing": "a8"}}, False, InvalidInputError, "no layer of this model"),
            (
                {"source": "folder", "folder": "nowhere"},
                False,
                DatasetError,
                "got nowhere, which is",
            ),
        ],
        ids=["output", "preprocessing", "labels", "support", "layers", "pictures"],
    )
    @pytest.mark.parametrize("resume", [False, True])
    def test_nothing_is_downloaded_for_what_cannot_be(
        self,
        request_: CalibrationRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        change: dict[str, Any],
        occupied: bool,
        error: type[InvalidInputError],
        match: str,
        resume: bool,
    ) -> None:
        def download(*_: Any) -> None:
            raise AssertionError("it was downloaded")

        monkeypatch.setattr(model_loading, "_create_pretrained", download)
        content = request_.recipe.model_dump(mode="json")
        for section, keys in (
            ("quantization", ["layer_bits"]),
            ("synthesis", ["source", "folder"]),
        ):
            content[section] |= {key: change[key] for key in keys if key in change}
        fields = {key: value for key, value in change.items() if key in vars(request_)}
        asked = replace(request_, checkpoint=None, recipe=Recipe.model_validate(content), **fields)
        if occupied:
            (tmp_path / "thesis.tex").write_text("years of work")
        output = tmp_path if occupied else tmp_path / "run"
        with pytest.raises(error, match=match):
            calibrate(asked, output, resume=resume)
        with pytest.raises(AssertionError, match="downloaded"):
            calibrate(replace(request_, checkpoint=None), tmp_path / "fine")

    @pytest.mark.parametrize("resume", [False, True])
    def test_a_folder_with_something_in_it(
        self, request_: CalibrationRequest, tmp_path: Path, resume: bool
    ) -> None:
        (tmp_path / "thesis.tex").write_text("years of work")
        with pytest.raises(RunDirectoryError, match="new or an empty directory"):
            calibrate(request_, tmp_path, resume=resume)
        assert contents(tmp_path) == {"thesis.tex": b"years of work"}

    def test_a_folder_without_enough_pictures_leaves_no_run(
        self, request_: CalibrationRequest, tmp_path: Path
    ) -> None:
        (tmp_path / "pictures").mkdir()
        settings = {"source": "folder", "folder": str(tmp_path / "pictures"), "num_images": 2}
        content = request_.recipe.model_dump(mode="json") | {"synthesis": settings}
        asked = replace(request_, recipe=Recipe.model_validate(content))
        with pytest.raises(DatasetError, match=r"at least 2 pictures, and the folder .* has 0"):
            calibrate(asked, tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_finished_run_without_resume(
        self, finished: RunDirectory, request_: CalibrationRequest
    ) -> None:
        before = contents(finished.root)
        with pytest.raises(RunDirectoryError, match="--resume"):
            calibrate(request_, finished.root)
        assert contents(finished.root) == before

    def test_a_file(self, request_: CalibrationRequest, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(InvalidInputError):
            calibrate(request_, tmp_path / "file")
        assert (tmp_path / "file").read_text() == "x"

    @pytest.mark.parametrize(
        ("change", "error", "match"),
        [
            ({"model": "vit_nonsense"}, InvalidInputError, "no model named"),
            (
                {"model": "resnet18", "model_arguments": {}, "checkpoint": "resnet"},
                UnsupportedModelError,
                "ResNet",
            ),
            ({"num_classes": 7}, CheckpointError, "head.bias"),
            ({"model_arguments": ARCHITECTURE | {"depth": 3}}, CheckpointError, "missing"),
            ({"labels": ["a", "b"]}, InvalidInputError, "10 classes, and 2 labels"),
            ({"preprocessing": {"std": [0.0, 1, 1]}}, InvalidInputError, "positive"),
            ({"device": "nonsense"}, InvalidInputError, "cpu always can"),
            ({"device": "cuda:99"}, InvalidInputError, "cpu always can"),
        ],
        ids=["name", "family", "classes", "depth", "labels", "preprocessing", "device", "gpu"],
    )
    def test_nothing_is_written_when_the_request_is_wrong(
        self,
        request_: CalibrationRequest,
        tmp_path: Path,
        change: dict[str, Any],
        error: type[InvalidInputError],
        match: str,
    ) -> None:
        if change.get("checkpoint") == "resnet":
            import timm

            path = tmp_path / "resnet.safetensors"
            save_file(timm.create_model("resnet18", num_classes=2).state_dict(), path)
            change = change | {"checkpoint": path, "num_classes": 2}
        with pytest.raises(error, match=match):
            calibrate(replace(request_, **change), tmp_path / "run")
        assert not (tmp_path / "run").exists()

    def test_a_diverged_run_can_be_looked_at(
        self, request_: CalibrationRequest, tmp_path: Path
    ) -> None:
        extreme = replace(
            request_, recipe=recipe(learning_rate=1e30, optimizer="sgd", gradient_clip=None)
        )
        with pytest.raises(InvalidInputError, match="diverged"):
            calibrate(extreme, tmp_path)
        run = RunDirectory.open(tmp_path)
        assert run.damaged_files() == []
        assert not run.stage_is_done("distillation")
        assert "quantized.safetensors" not in run.manifest.files


class TestImagesOfAnotherRun:
    def test_they_are_not_made_again(
        self,
        finished: RunDirectory,
        request_: CalibrationRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        other = recipe(epochs=0).model_dump()
        other["quantization"] |= {"weight_bits": 8}
        request = replace(request_, recipe=Recipe.model_validate(other))
        expected = calibrate(request, tmp_path / "own")

        def make_shard(*_: Any, **__: Any) -> None:
            raise Killed

        monkeypatch.setattr(sources, "make_shard", make_shard)
        run = calibrate(request, tmp_path / "copied", images_from=finished)
        before, after = contents(expected.root), contents(run.root)
        assert [name for name in before if before[name] != after.get(name)] == ["run.json"]
        assert run.manifest.files == expected.manifest.files

    @pytest.mark.parametrize("change", [{"seed": 4}, {"preprocessing": {"crop_pct": 1.0}}], ids=str)
    def test_others_are_refused(
        self,
        finished: RunDirectory,
        request_: CalibrationRequest,
        tmp_path: Path,
        change: dict[str, Any],
    ) -> None:
        with pytest.raises(RunDirectoryError, match="let it make its own"):
            calibrate(replace(request_, **change), tmp_path / "run", images_from=finished)

    def test_another_synthesis_is_refused(
        self, finished: RunDirectory, request_: CalibrationRequest, tmp_path: Path
    ) -> None:
        other = recipe().model_dump()
        other["synthesis"] |= {"head_similarity_weight": 0.5}
        request = replace(request_, recipe=Recipe.model_validate(other))
        with pytest.raises(RunDirectoryError, match="let it make its own"):
            calibrate(request, tmp_path / "run", images_from=finished)


class TestVariants:
    def test_ranges_alone(self, request_: CalibrationRequest, tmp_path: Path) -> None:
        run = calibrate(replace(request_, recipe=recipe(epochs=0)), tmp_path)
        assert run.manifest.stages["distillation"].details == {}
        with torch.no_grad():
            assert torch.isfinite(load_student(run)(images(2))).all()

    def test_labels(self, request_: CalibrationRequest, tmp_path: Path) -> None:
        labels = [f"class {n}" for n in range(10)]
        request = replace(request_, recipe=recipe(epochs=0), labels=labels)
        assert calibrate(request, tmp_path).manifest.model.labels == labels

    def test_one_channel(self, request_: CalibrationRequest, tmp_path: Path) -> None:
        path = tmp_path / "gray.safetensors"
        save_file(tiny_vit(in_chans=1).state_dict(), path)
        arguments = ARCHITECTURE | {"in_chans": 1}
        run = calibrate(
            replace(request_, checkpoint=path, model_arguments=arguments), tmp_path / "run"
        )
        assert run.manifest.preprocessing.input_size == (1, 32, 32)
        with Image.open(run.path("images/preview.png")) as preview:
            assert preview.mode == "L"

    def test_patch_similarity_resumes_to_the_same_images(
        self, request_: CalibrationRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chosen = recipe(epochs=0).model_dump()
        chosen["synthesis"] |= {"source": "patch-similarity"}
        request = replace(request_, recipe=Recipe.model_validate(chosen))
        run = calibrate(request, tmp_path / "undisturbed")
        original = sources.synthesise_by_patch_similarity
        with monkeypatch.context() as patch:
            shards = iter([original])  # the second shard finds none

            def dying(*arguments: Any, **others: Any) -> Any:
                for synthesise in shards:
                    return synthesise(*arguments, **others)
                raise Killed

            patch.setattr(sources, "synthesise_by_patch_similarity", dying)
            with pytest.raises(Killed):
                calibrate(request, tmp_path / "resumed")
        resumed = calibrate(request, tmp_path / "resumed", resume=True)
        for shard in ("images/shard-00000.safetensors", "images/shard-00001.safetensors"):
            assert resumed.manifest.files[shard] == run.manifest.files[shard]
        metrics = (run.path("metrics.jsonl")).read_text(encoding="utf-8")
        assert "patch_entropy" in metrics
        assert resumed.path("metrics.jsonl").read_text(encoding="utf-8") == metrics

    def test_noise(self, request_: CalibrationRequest, tmp_path: Path) -> None:
        chosen = recipe(epochs=0).model_dump()
        chosen["synthesis"] |= {"source": "noise", "num_images": 3}
        run = calibrate(replace(request_, recipe=Recipe.model_validate(chosen)), tmp_path)
        shard = load_file(run.path("images/shard-00001.safetensors"))
        assert shard["images"].shape == (1, 3, 32, 32)
        assert shard["labels"].tolist() == [-1]
