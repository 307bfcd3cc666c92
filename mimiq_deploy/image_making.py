"""The images of a run: made in shards, by one process or several, or copied from a like run."""

from __future__ import annotations

import functools
import time
from typing import TYPE_CHECKING, Any

from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.event_log import note_finished, note_progress, note_skipped, note_started
from mimiq_runtime.progress import progress_bar
from mimiq_runtime.run_directory import RunDirectory
from mimiq_runtime.run_images import read_shard

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from mimiq_calib.processes import Processes
    from mimiq_calib.recipe import SynthesisSettings
    from mimiq_runtime.manifest import RunManifest

__all__ = ["SYNTHESIS", "as_written", "copy_images", "make_images", "mix_in_dead_leaves"]

SYNTHESIS = "synthesis"
MADE_BY = "mimiq-deploy calibrate"
DEAD_LEAVES = "images/dead-leaves.safetensors"
DRAWING = "dead-leaves"
"""What the events call their making; ``run.json`` has no stage of it."""

PICTURES_OF_A_PIECE = 16
"""How many dead leaves are drawn for one line of the events."""


def make_images(
    run: RunDirectory,
    teacher: nn.Module,
    settings: SynthesisSettings,
    device: torch.device,
    processes: Processes,
) -> Tensor:
    """The stage of synthesis: make the shards that are not there yet.

    Args:
        run: The run; only the first process writes it.
        teacher: Full-precision model with exposed attention.
        settings: The source of images, and how it works.
        device: Where the teacher is.
        processes: Those that share the shards.

    Returns:
        All images of the run, uint8 ``(count, channels, height, width)``, in every process.

    Raises:
        InvalidInputError: The source cannot make them.
        LostProcessError: Another process has ended.
    """
    import torch

    from mimiq_calib.synthesis.preview import write_preview

    names = _shard_names(run.manifest)
    if run.stage_is_done(SYNTHESIS):
        note_skipped(run.root, SYNTHESIS)
    else:
        begun = time.monotonic()
        if processes.first:
            run.begin_stage(SYNTHESIS)
        _make_missing_shards(run, teacher, settings, device, processes)
        if processes.first:
            write_preview(run, names)
            run.finish_stage(SYNTHESIS, seconds=time.monotonic() - begun)
    run = as_written(run, processes)
    return torch.cat([torch.from_numpy(read_shard(run, name)) for name in names])


def copy_images(source: RunDirectory, run: RunDirectory) -> None:
    """Copy the finished shards of another run, with their metrics, where they would be the same.

    Args:
        source: A run that may have been made with other bits or another fine-tuning.
        run: The run that gets the shards it does not have yet.

    Raises:
        RunDirectoryError: The images of ``run`` would be others.
    """
    theirs, ours = source.manifest, run.manifest
    if _choices_of_images(theirs) != _choices_of_images(ours):
        raise RunDirectoryError(
            f"The images of {source.root} were made with another model, seed or synthesis than "
            f"{run.root} asks for; let it make its own."
        )
    metrics = source.read_metrics(SYNTHESIS)
    for shard, name in enumerate(_shard_names(ours)):
        if name in theirs.files and name not in run.manifest.files:
            run.write_metrics(SYNTHESIS, shard, metrics.get(shard, []))
            run.write_tensors(name, source.read_tensors(name, made_by=MADE_BY))


def mix_in_dead_leaves(
    run: RunDirectory, settings: SynthesisSettings, images: Tensor, processes: Processes
) -> Tensor:
    """The images with the pictures of random shapes evenly among them.

    Args:
        run: Where the pictures are kept; the first process draws them where they are not there.
        settings: How many.
        images: Those to calibrate with, uint8 ``(count, channels, height, width)``.
        processes: Those that work on the run.

    Raises:
        LostProcessError: Another process has ended.
    """
    import torch

    from mimiq_calib.synthesis.dead_leaves import interleaved

    if not settings.dead_leaves:
        return images
    manifest = run.manifest
    if processes.first and DEAD_LEAVES not in manifest.files:
        run.write_tensors(DEAD_LEAVES, {"images": _drawn(run, settings.dead_leaves).numpy()})
        note_finished(run.root, DRAWING)
    stored = as_written(run, processes).read_tensors(DEAD_LEAVES, made_by=MADE_BY)
    return interleaved(images, torch.from_numpy(stored["images"]))


def _drawn(run: RunDirectory, count: int) -> Tensor:
    from mimiq_calib.synthesis.dead_leaves import dead_leaves

    pieces = -(-count // PICTURES_OF_A_PIECE)
    note_started(run.root, DRAWING)
    with progress_bar("dead leaves", count) as advance:

        def on_picture(number: int) -> None:
            advance(1, "")
            done = number + 1
            if done % PICTURES_OF_A_PIECE == 0 or done == count:
                note_progress(run.root, DRAWING, number // PICTURES_OF_A_PIECE, pieces)

        manifest = run.manifest
        return dead_leaves(
            count, manifest.preprocessing.input_size, seed=manifest.seed, on_picture=on_picture
        )


def as_written(run: RunDirectory, processes: Processes) -> RunDirectory:
    """The run as the first process has left it when all have come here.

    Raises:
        LostProcessError: Another process has ended.
    """
    processes.wait()
    return run if processes.first else RunDirectory.open(run.root)


def _make_missing_shards(
    run: RunDirectory,
    teacher: nn.Module,
    settings: SynthesisSettings,
    device: torch.device,
    processes: Processes,
) -> None:
    """Make shards in rounds, one a process; the first process writes them down."""
    from mimiq_calib.fitting_batch import FittingBatch
    from mimiq_calib.randomness import piece_generator
    from mimiq_calib.synthesis.optimisation import MEMORY_KEY
    from mimiq_calib.synthesis.shard_bytes import pack_shard, unpack_shard
    from mimiq_calib.synthesis.sources import ShardRequest, make_shard, steps_of_shard

    fit = FittingBatch(MEMORY_KEY)

    def make(shard: int, advance: Callable[[int, str], None]) -> bytes:
        first = shard * settings.batch_size
        size = min(settings.batch_size, settings.total - first)
        batch = make_shard(
            teacher,
            settings,
            run.manifest.preprocessing,
            ShardRequest(first, size, piece_generator(run.manifest.seed, SYNTHESIS, shard)),
            num_classes=run.manifest.model.num_classes,
            device=device,
            fit=fit,
            advance=advance,
        )
        return pack_shard(batch)

    names = _shard_names(run.manifest)
    missing = [shard for shard, name in enumerate(names) if name not in run.manifest.files]
    note_skipped(run.root, SYNTHESIS, len(names) - len(missing), len(names))
    steps = steps_of_shard(settings)
    with progress_bar("synthesis", steps * len(names), visible=processes.first) as advance:
        advance(steps * (len(names) - len(missing)), "")
        for start in range(0, len(missing), processes.count):
            turn = missing[start : start + processes.count]
            made = b""
            if processes.rank < len(turn):
                # The first process counts for all: the shards of a round take the same steps.
                for_all = functools.partial(_advance_all, advance, len(turn))
                made = make(turn[processes.rank], for_all)
            for shard, data in zip(turn, processes.gather(made), strict=False):
                batch = unpack_shard(data)
                run.write_metrics(SYNTHESIS, shard, batch.metrics)
                run.write_tensors(
                    names[shard], {"images": batch.images.numpy(), "labels": batch.labels.numpy()}
                )
                note_progress(run.root, SYNTHESIS, shard, len(names))


def _advance_all(
    advance: Callable[[int, str], None], processes: int, steps: int, note: str
) -> None:
    advance(steps * processes, note)


def _choices_of_images(manifest: RunManifest) -> tuple[Any, ...]:
    """All that decides what the images are."""
    model = manifest.model
    return (
        (model.name, model.arguments, model.num_classes, model.weights_sha256),
        manifest.preprocessing,
        manifest.recipe["synthesis"],
        manifest.seed,
    )


def _shard_names(manifest: RunManifest) -> list[str]:
    settings = manifest.recipe["synthesis"]
    # A run of an earlier version has no images that are held out.
    total = settings["num_images"] + settings.get("held_out", 0)
    shards = len(range(0, total, settings["batch_size"]))
    return [f"images/shard-{shard:05d}.safetensors" for shard in range(shards)]
