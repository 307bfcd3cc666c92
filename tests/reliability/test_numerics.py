"""Weights that are legal and odd: no NaN and no infinity reaches a file of a run.

Each model is calibrated through the command line: images from its weights, reconstruction block by
block, distillation, estimate. Either all of it succeeds, and then the exported models answer with
numbers, too; or it is one sentence and exit code 2.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from _helpers.tiny_students import tiny_vit
from click.testing import CliRunner, Result
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from mimiq_calib.distillation import distill as distilling
from mimiq_calib.fitting_batch import FittingBatch
from mimiq_calib.reconstruction.importance import output_importance
from mimiq_deploy.cli import cli
from mimiq_export.export_run import write_onnx
from mimiq_runtime.errors import DivergedError, OnnxModelError
from mimiq_runtime.estimate import estimate_from_logits
from mimiq_runtime.event_log import read_events
from mimiq_runtime.run_directory import RunDirectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Weights = dict[str, Tensor]
    Change = Callable[[Weights], None]

ARCHITECTURE = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
RECIPE: dict[str, Any] = {
    "name": "numerics",
    "quantization": {"weight_bits": 4, "activation_bits": 4},
    "synthesis": {
        "num_images": 4,
        "held_out": 2,
        "batch_size": 3,
        "iterations": 2,
        "precision": "fp32",
    },
    "observation": {"num_images": 4, "batch_size": 2},
    "fine_tuning": "reconstruct-distill",
    "reconstruction": {"iterations": 2, "batch_size": 4, "views": 1, "precision": "fp32"},
    "distillation": {"epochs": 1, "batch_size": 4, "precision": "fp32"},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def calibrate(
    folder: Path,
    change: Change = lambda weights: None,
    *,
    recipe: dict[str, Any] | None = None,
    **architecture: int,
) -> Result:
    """``folder / "run"``, of a tiny ViT whose weights were changed."""
    sizes = ARCHITECTURE | architecture
    weights = {name: value.clone() for name, value in tiny_vit(**sizes).state_dict().items()}
    change(weights)
    save_file(weights, folder / "odd.safetensors")
    (folder / "recipe.yaml").write_text(json.dumps(RECIPE | (recipe or {})))
    options = [("--model-arg", f"{key}={value}") for key, value in sizes.items()]
    return invoke(
        *("calibrate", "vit_tiny_patch16_224", "--checkpoint", folder / "odd.safetensors"),
        *("--recipe", folder / "recipe.yaml", "-o", folder / "run"),
        *(part for pair in options for part in pair),
    )


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [*map(str, arguments)])


def check_succeeded(result: Result, run: Path) -> None:
    assert result.exit_code == 0, (result.output, result.exception)
    assert not_finite(run) == []


def check_refused(result: Result, run: Path, says: str) -> None:
    assert result.exit_code == 2, (result.output, result.exception)
    lines = [line for line in result.stderr.splitlines() if line]
    assert len(lines) == 1, lines
    assert says in lines[0]
    if (run / "run.json").exists():
        assert not_finite(run) == []
        assert RunDirectory.open(run).damaged_files() == []


def not_finite(run: Path) -> list[str]:
    """What is NaN or infinite in any file of a run, read without the program's own readers."""
    found: list[str] = []
    for path in run.rglob("*"):
        if path.suffix == ".safetensors":
            with safe_open(path, framework="np") as file:
                found += [f"{path} {k}" for k in file.keys() if odd(file.get_tensor(k))]  # noqa: SIM118
        elif path.suffix in {".json", ".jsonl"}:
            found += [f"{path} {word}" for word in words_that_are_no_json(path)]
        elif path.suffix == ".onnx":
            tensors = onnx.load(path).graph.initializer
            found += [f"{path} {t.name}" for t in tensors if odd(numpy_helper.to_array(t))]
    return found


def words_that_are_no_json(path: Path) -> list[str]:
    """Python reads NaN and Infinity, where they stand for numbers."""
    words: list[str] = []
    text = path.read_text()
    for document in text.splitlines() if path.suffix == ".jsonl" else [text]:
        json.loads(document, parse_constant=words.append)
    return words


def odd(array: np.ndarray) -> bool:
    return bool(np.issubdtype(array.dtype, np.inexact) and not np.isfinite(array).all())


def check_exports(run: Path, *targets: str) -> None:
    """They hold finite numbers, and ONNX Runtime answers with such, for black, white and noise."""
    for target in targets:
        result = invoke("export", run, "--target", target)
        assert result.exit_code == 0, (result.output, result.exception)
    assert not_finite(run) == []
    size = RunDirectory.open(run).manifest.preprocessing.input_size
    noise = np.random.default_rng(0).normal(size=(1, *size))
    images = np.concatenate([np.full((1, *size), -2.0), np.full((1, *size), 2.0), noise])
    for target in targets:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            run / f"export/{target}/model.onnx", options, ["CPUExecutionProvider"]
        )
        (logits,) = session.run(None, {"images": images.astype(np.float32)})
        assert np.isfinite(logits).all(), target


def zero(*names: str) -> Change:
    def change(weights: Weights) -> None:
        for name in weights:
            if any(part in name for part in names):
                weights[name].zero_()

    return change


def times(factor: float, *names: str) -> Change:
    def change(weights: Weights) -> None:
        for name in weights:
            if any(part in name for part in names):
                weights[name].mul_(factor)

    return change


def dead_head(weights: Weights) -> None:
    """The first head of the first block: no query, no key, no value."""
    size = 24 // 3
    for kind in range(3):
        rows = slice(24 * kind, 24 * kind + size)
        weights["blocks.0.attn.qkv.weight"][rows] = 0
        weights["blocks.0.attn.qkv.bias"][rows] = 0


def constant_channels(weights: Weights) -> None:
    """Half of a LayerNorm's channels are their bias; of another one, all are."""
    weights["blocks.0.norm1.weight"][::2] = 0
    weights["blocks.1.norm2.weight"].zero_()


def even_attention(weights: Weights) -> None:
    """All logits are zero: each token looks at all alike, and the maps have no variance."""
    for name in ("weight", "bias"):
        weights[f"blocks.0.attn.qkv.{name}"][:48] = 0


@pytest.mark.parametrize(
    "change",
    [
        dead_head,
        constant_channels,
        even_attention,
        zero("blocks.0.attn.qkv"),
        zero("blocks.1.attn.proj", "blocks.1.mlp.fc2"),
        zero("patch_embed.proj"),
        zero("mlp.fc1"),
        zero("head."),
        zero("norm.weight"),
        zero(""),
    ],
    ids=[
        *("dead head", "constant channels", "even attention", "no qkv", "no residual"),
        *("no patches", "no fc1", "no head", "no norm", "nothing"),
    ],
)
def test_weights_that_say_nothing(tmp_path: Path, change: Change) -> None:
    check_succeeded(calibrate(tmp_path, change), tmp_path / "run")


def test_what_says_nothing_is_exported(tmp_path: Path) -> None:
    def change(weights: Weights) -> None:
        for one in (dead_head, constant_channels, zero("blocks.1.attn.qkv", "blocks.1.mlp.fc2")):
            one(weights)

    check_succeeded(calibrate(tmp_path, change), tmp_path / "run")
    check_exports(tmp_path / "run", "ort-cpu", "trt")


ONE_OF_EACH = {"img_size": 8, "num_heads": 1, "depth": 1}


@pytest.mark.parametrize(
    ("architecture", "source"),
    [
        ({"num_heads": 1}, "mimiq"),
        ({"img_size": 8}, "mimiq"),
        (ONE_OF_EACH, "mimiq"),
        (ONE_OF_EACH, "patch-similarity"),
    ],
    ids=["one head", "one patch", "one of each", "one of each, patches"],
)
def test_one_of_everything(tmp_path: Path, architecture: dict[str, int], source: str) -> None:
    recipe = {
        "synthesis": RECIPE["synthesis"] | {"source": source, "batch_size": 1, "num_images": 2},
        "observation": {"num_images": 1, "batch_size": 1},
        "reconstruction": RECIPE["reconstruction"] | {"batch_size": 1},
        "distillation": RECIPE["distillation"] | {"batch_size": 1},
    }
    check_succeeded(calibrate(tmp_path, recipe=recipe, **architecture), tmp_path / "run")


@pytest.mark.parametrize(
    "change",
    [
        times(1e-30, "mlp.fc2", "attn.proj"),
        times(1e-30, "patch_embed", "pos_embed", "cls_token"),
        times(1e-30, "norm"),
        times(1e-30, "head"),
        times(1e-30, ""),
    ],
    ids=["tiny blocks", "tiny tokens", "tiny norms", "tiny logits", "all tiny"],
)
def test_tiny_scales(tmp_path: Path, change: Change) -> None:
    check_succeeded(calibrate(tmp_path, change), tmp_path / "run")
    table = RunDirectory.open(tmp_path / "run").quantization_table()
    scales = np.concatenate([np.ravel(row.scale) for row in table.tensors])
    # What half precision holds: a trt export turns none of them into zero.
    assert (np.float16(scales) > 0).all()


def test_scales_that_half_precision_would_lose_are_exported(tmp_path: Path) -> None:
    """Of one head that looks at one patch, too."""
    change = times(1e-30, "mlp.fc2", "attn.proj", "norm")
    result = calibrate(tmp_path, change, **ONE_OF_EACH)
    check_succeeded(result, tmp_path / "run")
    # One line a stage, with the memory of the process.
    assert len(re.findall(r"^  \w+ +\d+\.\d s  at most \d+ MiB", result.output, re.M)) == 5
    check_exports(tmp_path / "run", "ort-cpu", "trt")
    record = json.loads((tmp_path / "run/export/trt/export.json").read_text())
    severities = {finding["rule"]: finding["severity"] for finding in record["lint"]}
    assert severities["scale-loses-bits"] == "warning"
    assert "error" not in severities.values()


NO_NUMBERS = "gives logits that are not finite numbers"


@pytest.mark.parametrize(
    ("change", "says", "fine_tuning"),
    [
        (times(1e30, "attn.qkv"), NO_NUMBERS, "none"),
        (times(1e38, "head"), None, "reconstruct-distill"),
        (times(1e30, "mlp.fc2"), None, "reconstruct-distill"),
        (times(1e30, "mlp.fc2"), None, "none"),
        (times(1e30, "patch_embed", "pos_embed", "cls_token"), None, "reconstruct-distill"),
        (times(1e30, "blocks.0.norm"), None, "reconstruct-distill"),
        (times(1e18, "head"), None, "reconstruct-distill"),
        (times(1e18, "head"), None, "none"),
        (times(1e30, ""), NO_NUMBERS, "reconstruct-distill"),
    ],
    ids=[
        *("qkv", "logits beyond", "fc2", "fc2 alone", "tokens", "norms"),
        *("logits", "logits alone", "all"),
    ],
)
def test_huge_scales(tmp_path: Path, change: Change, says: str | None, fine_tuning: str) -> None:
    """Where the model itself still answers, squares overflow: either way is right, but no NaN."""
    result = calibrate(tmp_path, change, recipe={"fine_tuning": fine_tuning})
    run = tmp_path / "run"
    if result.exit_code == 0 and says is None:
        check_succeeded(result, run)
    else:
        check_refused(result, run, says or "Error: ")


def test_what_half_precision_cannot_hold_is_refused_by_its_target(tmp_path: Path) -> None:
    check_succeeded(calibrate(tmp_path, times(1e6, "head"), **ONE_OF_EACH), tmp_path / "run")
    check_refused(invoke("export", tmp_path / "run", "--target", "trt"), tmp_path / "run", "alf")


def test_a_distillation_that_diverges_stops_with_the_last_good_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss stays finite to the end of the second epoch; what it leaves does not."""
    original = torch.optim.AdamW.step
    steps = 0

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        nonlocal steps
        done = original(self, *arguments)
        learned = self.param_groups[0]["params"]
        steps += len(learned) > 1  # not the images of the synthesis
        if steps == 2:
            learned[0].data.view(-1)[0] = torch.nan
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    recipe = {"distillation": RECIPE["distillation"] | {"epochs": 3}}
    result = calibrate(tmp_path, recipe=recipe, **ONE_OF_EACH)
    check_refused(result, tmp_path / "run", "The distillation diverged in epoch 2")
    check_state_is_kept(tmp_path / "run", "distillation", following="1", pieces=[0])
    assert "distillation.safetensors" in result.stderr


def test_a_reconstruction_that_diverges_stops_with_the_last_good_state(tmp_path: Path) -> None:
    recipe = {"reconstruction": RECIPE["reconstruction"] | {"learning_rate": 1e30}}
    result = calibrate(tmp_path, recipe=recipe, **ONE_OF_EACH)
    check_refused(result, tmp_path / "run", "The reconstruction of stem diverged")
    check_state_is_kept(tmp_path / "run", "reconstruction", following="0", pieces=[])
    assert "reconstruction.safetensors" in result.stderr


def check_state_is_kept(run: Path, stage: str, *, following: str, pieces: list[int]) -> None:
    with safe_open(run / f"checkpoints/{stage}.safetensors", framework="np") as file:
        assert file.metadata()["next_epoch"] == following
    opened = RunDirectory.open(run)
    assert list(opened.read_metrics(stage)) == pieces
    assert not opened.stage_is_done(stage)
    assert read_events(run)[-1].stage == stage
    assert (read_events(run)[-1].message or "").startswith("DivergedError: ")


def test_lack_of_memory_elsewhere_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What does not go on by itself, such as a step of the optimiser."""

    def step(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB.\nAnd more.")

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    result = calibrate(tmp_path, **ONE_OF_EACH)
    check_refused(result, tmp_path / "run", "not enough (CUDA out of memory. Tried to allocate")
    assert "--resume" in result.stderr
    assert read_events(tmp_path / "run")[-1].stage == "reconstruction"


def test_images_that_are_no_numbers_are_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step has no loss behind it, and a pixel of NaN would be a black one."""
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, *arguments: Any) -> Any:
        done = original(self, *arguments)
        self.param_groups[0]["params"][0].data.view(-1)[0] = torch.nan
        return done

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    recipe = {"synthesis": RECIPE["synthesis"] | {"iterations": 1}}
    result = calibrate(tmp_path, recipe=recipe, **ONE_OF_EACH)
    check_refused(result, tmp_path / "run", "diverged at step 0: its images hold NaN")
    assert not list((tmp_path / "run").rglob("shard-*"))


def test_no_importance_is_drawn_from_nan() -> None:
    class Chain:
        links = (lambda x: x * torch.nan, lambda x: x)

    with pytest.raises(DivergedError, match="not finite"):
        output_importance(
            Chain(),  # type: ignore[arg-type]
            torch.ones(2, 3, requires_grad=True),
            temperature=1.0,
            batch_size=2,
            fit=FittingBatch("x"),
            generator=torch.Generator(),
        )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_no_exported_constant_is_nan(tmp_path: Path, value: float) -> None:
    import onnx_ir as ir
    from _helpers.runs import write_classifier

    write_classifier(tmp_path / "good.onnx")
    model = ir.load(tmp_path / "good.onnx")
    constant = model.graph.initializers["identity"]
    array = constant.const_value.numpy().copy()  # type: ignore[union-attr]
    array[0, 0] = value
    constant.const_value = ir.tensor(array, name="identity")
    with pytest.raises(OnnxModelError, match="would hold NaN or infinity in identity"):
        write_onnx(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()


@pytest.mark.parametrize("scale", [1e-40, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("quantized", ["equal", "zero", "infinite", "nan", "opposite"])
def test_an_estimate_of_any_logits_is_json(scale: float, quantized: str) -> None:
    random = np.random.default_rng(0)
    exact = (random.uniform(-1, 1, (5, 4)) * scale).astype(np.float32)
    other = {
        "equal": exact,
        "zero": np.zeros_like(exact),
        "infinite": np.full_like(exact, np.inf),
        "nan": np.full_like(exact, np.nan),
        "opposite": -exact,
    }[quantized]
    result = estimate_from_logits(exact, other, source="noise", blocks={"a": None}, seed=0)
    json.dumps(result.model_dump(mode="json"), allow_nan=False)
    assert 0 <= result.accuracy_kept_low <= result.accuracy_kept_high <= 1


def test_the_message_of_a_distillation_names_its_epoch() -> None:
    with pytest.raises(DivergedError, match=r"in epoch 3: its loss is inf"):
        distilling._refuse_divergence(float("inf"), 2)
