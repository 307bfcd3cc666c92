"""Calibrating a model: synthesis, observation, distillation, each a stage of the run directory.

Under torchrun all processes go through the same steps. Shards of images and batches of the
distillation are shared among them; the first process alone writes the run directory, and the
others read it.
"""

from __future__ import annotations

import contextlib
import platform
import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mimiq_deploy.early_checks import check_model, check_place
from mimiq_deploy.estimation import ESTIMATE, estimate
from mimiq_deploy.image_making import (
    SYNTHESIS,
    as_written,
    copy_images,
    make_images,
    mix_in_dead_leaves,
)
from mimiq_runtime.errors import CheckpointError, InvalidInputError, RunDirectoryError
from mimiq_runtime.event_log import note_progress, note_skipped, record_events
from mimiq_runtime.machine import library_versions
from mimiq_runtime.manifest import ModelRecord, RunManifest
from mimiq_runtime.printable import printable
from mimiq_runtime.progress import progress_bar
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.run_lock import hold_directory

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch
    from torch import Tensor, nn

    from mimiq_calib.processes import Processes
    from mimiq_calib.recipe import Recipe

__all__ = ["CalibrationRequest", "calibrate", "create_requested_model"]

OBSERVATION, DISTILLATION = "observation", "distillation"
RECONSTRUCTION = "reconstruction"
CHECKPOINT = "checkpoints/distillation.safetensors"
RECONSTRUCTION_CHECKPOINT = "checkpoints/reconstruction.safetensors"
LIBRARIES = ("mimiq-deploy", "torch", "torchvision", "timm", "numpy", "safetensors", "pillow")


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate, and how.

    Attributes:
        model: timm's name of the model, or ``hf-hub:OWNER/MODEL``.
        recipe: All choices of the method.
        checkpoint: File with the weights; None for timm's own pretrained weights.
        num_classes: Length of the logits; None for timm's default, or what the checkpoint's
            classifier says.
        model_arguments: Constructor arguments beyond timm's defaults.
        preprocessing: Fields of the preprocessing that differ from timm's configuration.
        labels: Name of each class; None for those that timm or the hub knows, if any.
        seed: Seed of every random choice.
        device: torch's name of the device; ``cuda`` under torchrun is a GPU for each process.
    """

    model: str
    recipe: Recipe
    checkpoint: Path | None = None
    num_classes: int | None = None
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    preprocessing: Mapping[str, Any] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    seed: int = 0
    device: str = "cpu"


def calibrate(
    request: CalibrationRequest,
    output: Path,
    *,
    resume: bool = False,
    images_from: RunDirectory | None = None,
) -> RunDirectory:
    """Calibrate a model without data and write the run directory.

    Every process that torchrun started calls this with the same arguments.

    Args:
        request: What to calibrate, and how.
        output: The run directory to make.
        resume: Continue the run in ``output`` where it stopped. A run that is not there is
            started; one that was made with other choices is refused.
        images_from: A run with the same model, seed and choices of the synthesis, whose images
            are copied instead of made again.

    Returns:
        The finished run.

    Raises:
        InvalidInputError: Something about the request, the checkpoint or the directory; see
            :mod:`mimiq_runtime.errors`.
        LostProcessError: Another process of the job has ended.
    """
    from mimiq_calib.conversion.convert import expose_attention
    from mimiq_calib.finite_answers import check_answers
    from mimiq_calib.processes import join_processes
    from mimiq_calib.run_models import load_student

    recipe = request.recipe
    with contextlib.ExitStack() as stack:
        processes, device = stack.enter_context(join_processes(request.device))
        if processes.first:
            check_place(output, resume=resume)
        model, manifest = _load_model(request, output, processes)
        teacher = expose_attention(model).to(device)
        check_answers(teacher, manifest.preprocessing)
        if processes.first:
            before = stack.enter_context(hold_directory(output, "calibrate"))
            _prepare_run(output, manifest, model, images_from, resume=resume)
            stack.enter_context(record_events(output, "calibrate", before))
        stack.enter_context(_lack_of_memory_in_a_sentence())
        processes.wait()
        run = RunDirectory.open(output)
        trained = run.stage_is_done(DISTILLATION)
        estimated = run.stage_is_done(ESTIMATE) or not recipe.synthesis.held_out
        if trained:
            _note_all_skipped(run, but=() if estimated else (SYNTHESIS,))
        if not (trained and estimated):
            images = make_images(run, teacher, recipe.synthesis, device, processes)
            images, held_out = images.tensor_split([recipe.synthesis.num_images])
            if not trained:
                images = mix_in_dead_leaves(run, recipe.synthesis, images, processes)
                student = _observe(run, teacher, recipe, images, device, processes)
                _reconstruct(run, student, teacher, recipe, images, processes)
                _distill(run, student, teacher, recipe, images, processes)
            if processes.first:
                estimate(run, load_student(run).to(device), teacher, recipe, held_out)
        if processes.first:
            for checkpoint in (CHECKPOINT, RECONSTRUCTION_CHECKPOINT):
                run.path(checkpoint).unlink(missing_ok=True)
        return as_written(run, processes)


@contextlib.contextmanager
def _lack_of_memory_in_a_sentence() -> Iterator[None]:
    """For what does not go on with fewer images at a time by itself."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InvalidInputError(
            f"The memory of the GPU is not enough ({str(error).strip().splitlines()[0]}); what was "
            "finished is kept. Free some of it and run the same command again with --resume, or "
            "calibrate into another directory with a smaller batch_size."
        ) from error


def _prepare_run(
    output: Path,
    manifest: RunManifest,
    model: nn.Module,
    images_from: RunDirectory | None,
    *,
    resume: bool,
) -> None:
    run = _create_or_resume(output, manifest, resume=resume)
    if RunDirectory.MODEL not in run.manifest.files:
        run.write_tensors(RunDirectory.MODEL, _arrays(model))
    if images_from is not None and not run.stage_is_done(SYNTHESIS):
        copy_images(images_from, run)


def create_requested_model(
    request: CalibrationRequest,
    *,
    pretrained: bool = False,
    check: Callable[[nn.Module], None] | None = None,
) -> tuple[nn.Module, Mapping[str, Tensor] | None]:
    """Create the model of a request.

    Args:
        request: Its name, arguments and checkpoint.
        pretrained: Whether timm's own weights are loaded, where there is no checkpoint.
        check: Called with the model before weights are downloaded.

    Returns:
        The model, and the content of its checkpoint, which is not loaded into it yet; None without.

    Raises:
        InvalidInputError: There is no such model, or its checkpoint cannot be read.
    """
    from mimiq_calib import model_loading

    weights = None
    num_classes = request.num_classes
    if request.checkpoint is not None:
        weights = model_loading.load_checkpoint_file(request.checkpoint)
        num_classes = num_classes or _classes_of(weights)
    model = model_loading.create_model(
        request.model,
        num_classes=num_classes,
        arguments=request.model_arguments,
        pretrained=pretrained and weights is None,
        values=None if weights is None else sum(value.numel() for value in weights.values()),
        check=check,
    )
    return model, weights


def _load_model(
    request: CalibrationRequest, output: Path, processes: Processes
) -> tuple[nn.Module, RunManifest]:
    from mimiq_calib import model_loading
    from mimiq_calib.checkpoint_names import todays_names
    from mimiq_calib.hub_names import describe_download, look_up

    asked = describe_download(request.model, weights=request.checkpoint is None)
    if asked is not None and processes.first:
        # There is no run yet whose events could have it: until the model is known, none is made.
        print(printable(asked), file=sys.stderr)
    named = look_up(request.model)
    model, weights = create_requested_model(
        request, pretrained=True, check=lambda made: check_model(made, request, output)
    )
    origin = f"{request.model} (timm's pretrained weights)"
    if weights is not None and request.checkpoint is not None:
        origin = request.checkpoint.name
        model_loading.load_weights(
            model, todays_names(model, weights), origin=str(request.checkpoint)
        )
    classes = int(getattr(model, "num_classes", 0))
    labels = request.labels if request.labels is not None else named.labels
    if labels is None or len(labels) != classes:
        labels = _known_labels(classes)
    record = ModelRecord(
        name=named.architecture,
        arguments=named.arguments | dict(request.model_arguments),
        num_classes=max(classes, 1),
        weights=origin,
        weights_sha256=_fingerprint(model),
        labels=None if labels is None else list(labels),
    )
    manifest = RunManifest(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        model=record,
        preprocessing=model_loading.preprocessing_of(model, request.preprocessing),
        recipe=request.recipe.model_dump(mode="json"),
        seed=request.seed,
        environment={
            "python": platform.python_version(),
            "platform": platform.platform(),
            "device": request.device,
            "processes": str(processes.count),
            **library_versions(LIBRARIES),
        },
    )
    return model, manifest


def _create_or_resume(output: Path, manifest: RunManifest, *, resume: bool) -> RunDirectory:
    if not resume or not (output / RunDirectory.MANIFEST).exists():
        return RunDirectory.create(output, manifest)
    run = RunDirectory.open(output)
    run.settle()
    for choice in ("model", "preprocessing", "recipe", "seed"):
        # As JSON has it: a tuple among the model's arguments is a list in run.json.
        before, now = (m.model_dump(mode="json")[choice] for m in (run.manifest, manifest))
        if before != now:
            raise RunDirectoryError(
                f"The run in {output} was started with another {choice}; resume it with the "
                "choices it was started with, or choose another directory."
            )
    return run


def _note_all_skipped(run: RunDirectory, *, but: Collection[str]) -> None:
    """The training is done; of the images make_images tells, where the estimate needs them."""
    for stage in run.manifest.stages:
        if stage not in but and run.stage_is_done(stage):
            note_skipped(run.root, stage)


def _observe(
    run: RunDirectory,
    teacher: nn.Module,
    recipe: Recipe,
    images: Tensor,
    device: torch.device,
    processes: Processes,
) -> nn.Module:
    """Build the student and choose its grids and first scales, in the first process.

    What was chosen is in a checkpoint from the beginning of the training on: then it is not
    chosen again. The other processes get it from there too.
    """
    from mimiq_calib.conversion.convert import build_student

    written = any(run.path(path).exists() for path in (CHECKPOINT, RECONSTRUCTION_CHECKPOINT))
    chosen_before = run.stage_is_done(OBSERVATION) and written
    if chosen_before:
        note_skipped(run.root, OBSERVATION)
    if chosen_before or not processes.first:
        return build_student(teacher, recipe.quantization)
    begun = time.monotonic()
    run.begin_stage(OBSERVATION)
    student = _choose_grids_and_scales(run, teacher, recipe, images, device)
    run.finish_stage(OBSERVATION, seconds=time.monotonic() - begun)
    return student


def _choose_grids_and_scales(
    run: RunDirectory, teacher: nn.Module, recipe: Recipe, images: Tensor, device: torch.device
) -> nn.Module:
    import copy

    from mimiq_calib.conversion.convert import insert_quantizers
    from mimiq_calib.observation import observe_activations, scale_weights
    from mimiq_calib.pixels import PixelScale
    from mimiq_calib.reparametrization.reparametrize import reparametrize

    settings = recipe.quantization
    chosen = images[: recipe.observation.num_images]
    pixel_scale = PixelScale(run.manifest.preprocessing, device)
    student = copy.deepcopy(teacher)
    with progress_bar("observation", 2 * len(chosen)) as advance:
        reparametrize(
            student,
            settings,
            chosen,
            pixel_scale,
            batch_size=recipe.observation.batch_size,
            advance=advance,
        )
        insert_quantizers(student, settings)
        scale_weights(student, settings)
        observe_activations(
            student,
            settings,
            chosen,
            pixel_scale,
            batch_size=recipe.observation.batch_size,
            advance=advance,
        )
    return student


def _reconstruct(
    run: RunDirectory,
    student: nn.Module,
    teacher: nn.Module,
    recipe: Recipe,
    images: Tensor,
    processes: Processes,
) -> None:
    """Train the student block by block, where the recipe asks for it."""
    from dataclasses import asdict

    from mimiq_calib.distillation.checkpoint import pieces_done
    from mimiq_calib.reconstruction.chain import Chain
    from mimiq_calib.reconstruction.reconstruct import (
        LinkMetrics,
        reconstruct,
        steps_of_reconstruction,
    )

    # The distillation's checkpoint holds what came out of it.
    if not recipe.fine_tuning.reconstructs:
        return
    if run.path(CHECKPOINT).exists():
        note_skipped(run.root, RECONSTRUCTION)
        return
    begun = time.monotonic()
    done = run.stage_is_done(RECONSTRUCTION) or not processes.first
    if not done:
        run.begin_stage(RECONSTRUCTION)

    checkpoint, links = run.path(RECONSTRUCTION_CHECKPOINT), len(Chain(teacher).links)
    note_skipped(run.root, RECONSTRUCTION, pieces_done(checkpoint), links)

    def on_link(number: int, metrics: LinkMetrics) -> None:
        run.write_metrics(RECONSTRUCTION, number, [asdict(metrics)])
        note_progress(run.root, RECONSTRUCTION, number, links)

    bits = recipe.quantization
    settings = recipe.reconstruction.at_bits(bits.weight_bits)
    steps = steps_of_reconstruction(settings, teacher)
    with progress_bar(RECONSTRUCTION, steps, visible=processes.first) as advance:
        reconstruct(
            student,
            teacher,
            images,
            settings,
            run.manifest.preprocessing,
            seed=run.manifest.seed,
            checkpoint=checkpoint,
            processes=processes,
            on_link=on_link,
            advance=advance,
        )
    if not done:
        pieces = run.read_metrics(RECONSTRUCTION)
        details = {"blocks": len(pieces), "error": pieces[max(pieces)][0]["error_after"]}
        run.finish_stage(RECONSTRUCTION, seconds=time.monotonic() - begun, details=details)


def _distill(
    run: RunDirectory,
    student: nn.Module,
    teacher: nn.Module,
    recipe: Recipe,
    images: Tensor,
    processes: Processes,
) -> None:
    from dataclasses import asdict

    from mimiq_calib.distillation.checkpoint import pieces_done
    from mimiq_calib.distillation.distill import EpochMetrics, distill, steps_of_distillation
    from mimiq_calib.run_models import save_student

    begun = time.monotonic()
    if processes.first:
        run.begin_stage(DISTILLATION)

    def on_epoch(metrics: EpochMetrics) -> None:
        run.write_metrics(DISTILLATION, metrics.epoch, [asdict(metrics)])
        note_progress(run.root, DISTILLATION, metrics.epoch, settings.epochs)

    settings = recipe.distillation.at_bits(recipe.quantization.weight_bits)
    if recipe.fine_tuning.distills and settings.epochs:
        note_skipped(run.root, DISTILLATION, pieces_done(run.path(CHECKPOINT)), settings.epochs)
        steps = steps_of_distillation(settings, len(images))
        with progress_bar("distillation", steps, visible=processes.first) as advance:
            distill(
                student,
                teacher,
                images,
                settings,
                run.manifest.preprocessing,
                seed=run.manifest.seed,
                checkpoint=run.path(CHECKPOINT),
                processes=processes,
                on_epoch=on_epoch,
                advance=advance,
            )
    if processes.first:
        save_student(run, student)
        # Read, not remembered: the last epoch may have been done before an interruption.
        pieces = run.read_metrics(DISTILLATION)
        details = pieces[max(pieces)][0] if pieces else {}
        run.finish_stage(DISTILLATION, seconds=time.monotonic() - begun, details=details)


def _classes_of(weights: Mapping[str, Tensor]) -> int | None:
    """Number of classes by the classifier's weight, so that users need not count them."""
    for name in ("head.weight", "head.fc.weight"):
        for found in (weights.get(name), weights.get(f"module.{name}")):
            if found is not None and found.ndim > 0:
                return int(found.shape[0])
    return None


def _known_labels(classes: int) -> list[str] | None:
    """Names of ImageNet's classes for a model that has as many, as timm knows them."""
    from timm.data import ImageNetInfo

    if classes != 1000:
        return None
    info = ImageNetInfo("imagenet-1k")
    return [info.index_to_description(index) for index in range(classes)]


def _fingerprint(model: nn.Module) -> str:
    import hashlib

    digest = hashlib.sha256()
    for name, array in _arrays(model).items():
        digest.update(name.encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def _arrays(model: nn.Module) -> dict[str, Any]:
    state = model.state_dict()
    unknown = [name for name, value in state.items() if not hasattr(value, "numpy")]
    if unknown:
        raise CheckpointError(f"The model holds values that are no tensors: {', '.join(unknown)}.")
    return {name: value.detach().cpu().contiguous().numpy() for name, value in state.items()}
