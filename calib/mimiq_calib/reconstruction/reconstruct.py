r"""Block-wise reconstruction: each block learns to undo the error of those before it.

BRECQ (arXiv 2102.05426) trains one block at a time to give the full-precision block's output,
which a few images can tell it; QDrop (arXiv 2203.05740) mixes full-precision values into the
block's input, which keeps it from fitting the errors of just these images. Both only choose
roundings; here weights move as in distillation, and scales with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mimiq_calib.distillation.augmentation import augment_images, make_augmentation
from mimiq_calib.distillation.checkpoint import load_checkpoint, save_checkpoint
from mimiq_calib.distillation.parametrization import learn_scales_in_logarithm
from mimiq_calib.pixels import PixelScale
from mimiq_calib.processes import Processes
from mimiq_calib.randomness import piece_generator, piece_seed
from mimiq_calib.reconstruction.chain import Chain
from mimiq_calib.reconstruction.importance import output_importance
from mimiq_calib.reconstruction.link_training import LinkMetrics, LinkTraining
from mimiq_calib.reconstruction.view_memory import ViewMemory, ViewValues
from mimiq_runtime.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mimiq_calib.recipe import ReconstructionSettings
    from mimiq_runtime.manifest import Preprocessing

__all__ = ["LinkMetrics", "reconstruct", "steps_of_reconstruction"]

STAGE = "reconstruction"
ALONE = Processes()

IMPORTANCE_IMAGES = 64
"""Images for the importance of outputs: it is a mean over images and needs no more."""


def steps_of_reconstruction(settings: ReconstructionSettings, model: nn.Module) -> int:
    """Number of optimisation steps in all; the model has exposed attention."""
    return settings.iterations * len(Chain(model).links)


def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor,
    settings: ReconstructionSettings,
    preprocessing: Preprocessing,
    *,
    seed: int,
    checkpoint: Path,
    processes: Processes = ALONE,
    on_link: Callable[[int, LinkMetrics], None],
    advance: Callable[[int, str], None],
) -> None:
    """Train the links of the student one after another, from the images to the logits.

    A link takes in what the quantized links before it give, and learns to give what the teacher
    gives at this place for the same images. Before the first and after every link the student is
    written to ``checkpoint``; if that file is there at the start, the next link goes on from it to
    the same result, whatever the student's quantizers were. Up to five tensors of the size of one
    block's output for all views are held at a time.

    Where the memory of a GPU is not enough, these are kept on the host, to the same bits. Where
    that is not enough either, a batch is taken in parts whose gradients are added up: the step
    stays that of the whole batch but for rounding.

    Args:
        student: Model with calibrated quantizers, in inference mode; trained in place.
        teacher: The full-precision model with frozen parameters.
        images: uint8 pixels, ``(count, channels, height, width)``.
        settings: Views, losses and schedule.
        preprocessing: Size of the input and the scale of its pixels.
        seed: Seed of the run.
        checkpoint: File for the state after a link; the first process writes it, all read.
        processes: Those that share each batch, each with the same arguments. Each keeps the
            activations of all views.
        on_link: Called with the number and the errors of each finished link, in the first process.
        advance: Called with the number of steps done and a note.

    Raises:
        UnsupportedModelError: The model is no chain of blocks.
        InvalidInputError: The memory of the GPU is not enough for one view.
        DivergedError: A loss is no longer finite; the state after the last good link is in
            ``checkpoint``.
        RunDirectoryError: ``checkpoint`` is not of this training.
        LostProcessError: Another process has ended.
    """
    chains = Chain(student), Chain(teacher)
    links = list(zip(chains[0].links, chains[1].links, strict=True))
    with learn_scales_in_logarithm(student):
        # Grids and first scales are written down before they are trained: a resumed run does not
        # choose again.
        if processes.first and not checkpoint.exists():
            save_checkpoint(checkpoint, student, None, next_epoch=0)
        processes.wait()
        next_link = load_checkpoint(checkpoint, student, None)
        advance(settings.iterations * next_link, "")
        # Nothing is left to do where a run is resumed in a later stage.
        if next_link < len(links):
            device = next(student.parameters()).device
            memory = ViewMemory(device)
            views = _views(images, settings, preprocessing, seed, memory)
            _check_chain(teacher, chains[1], views, memory)
            weights = _error_weights(chains[1], views, settings, seed, memory)
            exact, quantized = views, views
            for number, (link, original) in enumerate(links):
                targets = memory.outputs(original, exact, settings.batch_size)
                if number < next_link:
                    outputs = memory.outputs(link, quantized, settings.batch_size)
                else:
                    training = LinkTraining(
                        link,
                        settings,
                        memory,
                        targets,
                        weights[number],
                        seed=seed,
                        number=number,
                        processes=processes,
                    )
                    outputs, metrics = training.run(quantized, exact, advance)
                    if processes.first:
                        # Its metrics first: an interruption between the two repeats the block.
                        on_link(number, metrics)
                        save_checkpoint(checkpoint, student, None, next_epoch=number + 1)
                exact, quantized = targets, outputs
    student.requires_grad_(False)


def _views(
    images: Tensor,
    settings: ReconstructionSettings,
    preprocessing: Preprocessing,
    seed: int,
    memory: ViewMemory,
) -> ViewValues:
    """The images, and further copies of them, each changed at random; normalised."""
    pixel_scale = PixelScale(preprocessing, memory.device)
    augmentation = make_augmentation(settings.augmentation, preprocessing.input_size)
    count = len(images)
    views = memory.keep(settings.views * count)
    for view in range(settings.views):

        def make(part: slice, view: int = view) -> None:
            unit = pixel_scale.to_unit(images[part].to(memory.device))
            if view:
                places = range(count)[part]
                seeds = [piece_seed(seed, f"{STAGE} view {view}", place) for place in places]
                unit = augment_images(unit, augmentation, seeds)
            first = view * count
            views[first + part.start : first + part.stop] = pixel_scale.normalise(unit)

        memory.without_gradients.run_slices(count, settings.batch_size, make)
    return views


def _error_weights(
    teacher: Chain,
    views: ViewValues,
    settings: ReconstructionSettings,
    seed: int,
    memory: ViewMemory,
) -> list[Tensor]:
    """How much each value of each link's output counts; logits all the same."""
    even = torch.ones((), device=memory.device)
    if not settings.weigh_by_importance:
        return [even] * len(teacher.links)
    stride = max(1, len(views) // IMPORTANCE_IMAGES)
    importance = output_importance(
        teacher,
        memory.without_gradients.run(1, lambda _size: views[::stride]),
        temperature=settings.temperature,
        batch_size=settings.batch_size,
        fit=memory.fitting(),
        generator=piece_generator(seed, f"{STAGE} importance", 0),
    )
    return [*importance, even]


def _check_chain(model: nn.Module, chain: Chain, views: ViewValues, memory: ViewMemory) -> None:
    @torch.no_grad()
    def same(_size: int) -> bool:
        image = views[:1]
        return torch.allclose(chain(image), model(image), rtol=1e-4, atol=1e-4)

    if not memory.without_gradients.run(1, same):
        raise UnsupportedModelError(
            type(model).__name__,
            "its blocks are no chain, so that they cannot be reconstructed one by one; "
            "use fine_tuning=distill",
        )
