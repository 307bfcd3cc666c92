"""The head of a run's report: what it is, and the figures that matter most."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mimiq_runtime.estimate import read_estimate
from mimiq_runtime.manifest import StageState
from mimiq_runtime.report.numbers import bytes_as, percent, seconds_as
from mimiq_runtime.report.section import DataTable, Facts, Section, Tile, Verdict
from mimiq_runtime.report.shown_parity import FULL_PRECISION_REFERENCE, read_parity
from mimiq_runtime.report.speed import read_speed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["key_figures", "model_section", "size_of_export"]


def key_figures(run: RunDirectory) -> list[Tile]:
    """The figures at the top, as far as they were measured.

    Raises:
        InvalidInputError: A file of the run is damaged.
    """
    return [*_accuracy(run), *_estimate(run), *_speed(run), *_size(run)]


def size_of_export(run: RunDirectory, target: str) -> int | None:
    """Bytes of the exported model with its external data; None where it was not exported."""
    first = f"export/{target}/model.onnx"
    sizes = [record.bytes for path, record in run.manifest.files.items() if path.startswith(first)]
    return sum(sizes) if first in run.manifest.files else None


def model_section(run: RunDirectory) -> Section:
    """Model, preprocessing, recipe, stages, versions."""
    manifest = run.manifest
    model, how = manifest.model, manifest.preprocessing
    recipe = manifest.recipe
    quantization, synthesis = recipe.get("quantization", {}), recipe.get("synthesis", {})
    facts = {
        "model": f"{model.name}, {model.num_classes} classes",
        "weights": f"{model.weights} (SHA-256 {model.weights_sha256[:12]}…)",
        "bits": f"weights {quantization.get('weight_bits')}, "
        f"activations {quantization.get('activation_bits')}, "
        f"first layer {quantization.get('first_layer_bits', 'the same')}, "
        f"last layer {quantization.get('last_layer_bits', 'the same')}",
        "recipe": str(recipe.get("name", "without a name")),
        "images": f"{synthesis.get('num_images', '?')} of {synthesis.get('source', '?')}",
        "fine-tuning": str(recipe.get("fine_tuning", "distill")),
        "input": f"{' x '.join(map(str, how.input_size))}, {how.interpolation}",
        "seed": str(manifest.seed),
        "begun": manifest.created,
    }
    stages = [
        (name, Verdict(stage.state, stage.state is StageState.DONE), seconds_as(stage.seconds))
        for name, stage in manifest.stages.items()
    ]
    return Section(
        name="model",
        title="Model and recipe",
        parts=(
            Facts(list(facts.items())),
            DataTable(("stage", "state", "time"), stages, "What was done", words=2),
            DataTable(
                ("key", "value"), list(_keys(recipe)), "The recipe, every key", words=2, folded=True
            ),
            DataTable(
                ("library", "version"),
                list(manifest.environment.items()),
                "What calibrated",
                words=2,
                folded=True,
            ),
        ),
    )


def _accuracy(run: RunDirectory) -> Iterator[Tile]:
    parity = read_parity(run)
    if parity is None:
        return
    exact = parity.references.get(FULL_PRECISION_REFERENCE)
    for name, engine in parity.engines.items():
        count = parity.pictures[1] if parity.pictures is not None else 0
        if engine.accuracy is not None and exact is not None:
            drop = 100 * (engine.accuracy.top1 - exact.top1)
            yield Tile(
                percent(engine.accuracy.top1),
                f"top-1 in {name}",
                f"full precision {percent(exact.top1)}, {drop:+.1f} points, {count} pictures",
            )
        same = engine.parity.get(FULL_PRECISION_REFERENCE)
        if same is not None:
            yield Tile(
                percent(same.agreement), "same answer as full precision", f"{same.n} pictures"
            )
        return  # the first engine; the others are in the tables


def _estimate(run: RunDirectory) -> Iterator[Tile]:
    cost = read_estimate(run)
    if cost is not None:
        yield Tile(
            f"≈ {percent(cost.accuracy_kept, 0)}",
            "of the accuracy kept, estimated without data",
            f"{percent(cost.accuracy_kept_low, 0)} to {percent(cost.accuracy_kept_high, 0)}, "
            f"{cost.images} held-out images",
        )


def _speed(run: RunDirectory) -> Iterator[Tile]:
    bench = read_speed(run)
    if bench is None:
        return
    others = [row for row in bench.rows if row.session != bench.baseline]
    if others:
        best = max(others, key=lambda row: row.speedup.median)
        yield Tile(
            f"{best.speedup.median:.2f} x",
            f"as fast as {bench.baseline}",
            f"{best.session}, batch {best.batch_size}, threads {best.threads or '?'}, "
            f"95 % interval {best.speedup.low:.2f} to {best.speedup.high:.2f}",
        )


def _size(run: RunDirectory) -> Iterator[Tile]:
    exact = size_of_export(run, "fp32")
    targets = [
        stage.partition("/")[2] for stage in run.manifest.stages if stage.startswith("export/")
    ]
    sizes = {t: size for t in targets if (size := size_of_export(run, t)) and t != "fp32"}
    if sizes:
        target, size = next(iter(sizes.items()))
        detail = f"FP32 {bytes_as(exact)}, {size / exact:.2f} times that" if exact else ""
        yield Tile(bytes_as(size), f"ONNX for {target}", detail)


def _keys(value: object, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Dotted key and value of a tree of settings."""
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from _keys(below, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, str(value)
