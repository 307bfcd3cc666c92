"""Too little memory, as a GPU has it: the same images, scales and steps with fewer at a time.

The error is raised where a GPU raises it, in a forward pass of too many images. The stage that
trains block by block is in test_reconstruction_memory.py.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from _helpers.calib_cases import CPU, PREPROCESSING, no_advance, pixels, synthesis
from _helpers.little_memory import room_for
from _helpers.tiny_students import tiny_swin, tiny_vit
from torch import Tensor, nn

from mimiq_calib.conversion.convert import build_student, expose_attention, insert_quantizers
from mimiq_calib.distillation.distill import EpochMetrics, distill
from mimiq_calib.fitting_batch import FittingBatch
from mimiq_calib.observation import observe_activations, scale_weights
from mimiq_calib.pixels import PixelScale
from mimiq_calib.recipe import DistillationSettings, QuantizationSettings
from mimiq_calib.reparametrization.reparametrize import reparametrize
from mimiq_calib.synthesis.sources import ShardRequest, make_shard
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_calib.synthesis.optimisation import SynthesisedBatch

SETTINGS = QuantizationSettings(weight_bits=8, activation_bits=8)


class TestFittingBatch:
    def test_all_at_once_where_they_fit(self) -> None:
        assert FittingBatch("x").run(7, lambda size: [size]) == [7]

    def test_half_as_many_until_they_fit_and_so_on_from_there(self) -> None:
        fit, tried = FittingBatch("a.key"), list[int]()

        def work(size: int) -> int:
            tried.append(size)
            if size > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return size

        with pytest.warns(RuntimeWarning) as warned:
            assert fit.run(10, work) == 3
        assert tried == [10, 5, 3]
        assert [str(warning.message).partition(" for ")[2] for warning in warned] == [
            "10 images at a time (a.key): going on with 5.",
            "5 images at a time (a.key): going on with 3.",
        ]
        assert [fit.run(size, work) for size in (10, 2)] == [3, 2]

    def test_one_image_is_the_end(self) -> None:
        def work(_size: int) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        fit = FittingBatch("a.key")
        with (
            pytest.warns(RuntimeWarning, match="going on with 1"),
            pytest.raises(InvalidInputError, match=r"for one image at a time \(a\.key\)"),
        ):
            fit.run(2, work)

    def test_room_is_made_before_fewer_are_taken(self) -> None:
        freed, tried = ["first this", "then that"], list[int]()

        def work(size: int) -> int:
            tried.append(size)
            if freed or size > 2:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return size

        fit = FittingBatch("a.key", lambda: freed.pop(0) if freed else None)
        with pytest.warns(RuntimeWarning) as warned:
            assert fit.run(4, work) == 2
        assert tried == [4, 4, 4, 2]
        assert [str(warning.message).rpartition(": ")[2] for warning in warned] == [
            "first this.",
            "then that.",
            "going on with 2.",
        ]

    def test_room_is_made_for_one_image(self) -> None:
        freed = ["this"]

        def work(size: int) -> int:
            if freed:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return size

        with pytest.warns(RuntimeWarning, match="this"):
            assert FittingBatch("x", lambda: freed.pop() if freed else None).run(1, work) == 1

    def test_slices_cover_all_and_the_failed_one_alone_is_begun_anew(self) -> None:
        tried: list[tuple[int, int]] = []

        def work(part: slice) -> list[int]:
            tried.append((part.start, part.stop))
            if part.stop - part.start > 3 and part.start >= 4:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return list(range(11)[part])

        fit = FittingBatch("x")
        with pytest.warns(RuntimeWarning, match="4 images at a time"):
            found = fit.run_slices(11, 4, work)
        assert tried == [(0, 4), (4, 8), (4, 6), (6, 8), (8, 10), (10, 11)]
        assert [number for part in found for number in part] == list(range(11))
        assert [len(part) for part in fit.run_slices(5, 4, work)] == [2, 2, 1]

    def test_nothing_of_the_failed_attempt_is_held(self) -> None:
        """What it holds is memory that the next attempt needs."""
        held: list[weakref.ref[Tensor]] = []

        def work(size: int) -> None:
            activations = torch.ones(size)
            gc.collect()
            assert all(reference() is None for reference in held)
            held.append(weakref.ref(activations))
            if size > 1:
                raise torch.OutOfMemoryError("CUDA out of memory")

        with pytest.warns(RuntimeWarning):
            FittingBatch("x").run(4, work)
        assert len(held) == 3


def shard(model: nn.Module, size: int, **settings: Any) -> SynthesisedBatch:
    return make_shard(
        model,
        synthesis(num_images=size, batch_size=size, **settings),
        PREPROCESSING,
        ShardRequest(0, size, torch.Generator().manual_seed(5)),
        num_classes=10,
        device=CPU,
        advance=no_advance,
    )


@pytest.mark.parametrize("make", [tiny_vit, tiny_swin], ids=["ViT", "Swin"])
# The entropy's kernel is a hundredth wide: each step makes some fifty times of a rounding, so that
# longer runs part, as they do from a start that differs by 1e-7.
@pytest.mark.parametrize(("source", "iterations"), [("mimiq", 6), ("patch-similarity", 2)])
@pytest.mark.parametrize("most", [1, 3])
def test_images_are_the_same(make: Any, source: str, iterations: int, most: int) -> None:
    """Not each image by its own batch: the prior and the entropy's range are of all five."""
    model = expose_attention(make())
    expected = shard(model, 5, source=source, iterations=iterations)
    with (
        room_for(model, most) as seen,
        pytest.warns(RuntimeWarning, match=r"synthesis\.batch_size"),
    ):
        batch = shard(model, 5, source=source, iterations=iterations)
    assert seen[0] == 5
    assert max(seen[3:]) <= most
    assert batch.labels.tolist() == expected.labels.tolist()
    # Sums in another order: a pixel may be rounded to its neighbour.
    difference = (batch.images.int() - expected.images.int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.01
    for record, other in zip(batch.metrics, expected.metrics, strict=True):
        assert record == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_a_second_shard_begins_with_what_fitted() -> None:
    model = expose_attention(tiny_vit())
    fit = FittingBatch("synthesis.batch_size")
    sizes = []
    for _ in range(2):
        warned = contextlib.nullcontext() if sizes else pytest.warns(RuntimeWarning)
        with room_for(model, 2) as seen, warned:
            make_shard(
                model,
                synthesis(num_images=4, batch_size=4, iterations=1),
                PREPROCESSING,
                ShardRequest(0, 4, torch.Generator().manual_seed(5)),
                num_classes=10,
                device=CPU,
                fit=fit,
                advance=no_advance,
            )
        sizes.append(seen)
    assert sizes == [[4, 2, 2], [2, 2]]


def observed(teacher: nn.Module, batch_size: int, most: int | None = None) -> nn.Module:
    """Reparametrized and observed; with ``most`` images at a time, what a warning says."""
    student = copy.deepcopy(teacher)
    done = 0

    def advance(steps: int, _note: str) -> None:
        nonlocal done
        done += steps

    scale = PixelScale(PREPROCESSING, CPU)
    with contextlib.ExitStack() as stack:
        if most is not None:
            stack.enter_context(room_for(student, most))
            stack.enter_context(pytest.warns(RuntimeWarning, match=r"observation\.batch_size"))
        reparametrize(student, SETTINGS, pixels(6), scale, batch_size=batch_size, advance=advance)
        insert_quantizers(student, SETTINGS)
        scale_weights(student, SETTINGS)
        observe_activations(
            student, SETTINGS, pixels(6), scale, batch_size=batch_size, advance=advance
        )
    assert done == 12, "the progress bar went back for what was done again"
    return student


def test_observation_is_that_of_smaller_batches() -> None:
    """To the bit: nothing of the batches that did not fit is left in a statistic."""
    teacher = expose_attention(tiny_vit())
    expected = observed(teacher, 2).state_dict()
    found = observed(teacher, 4, most=2).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def trained(folder: Path, most: int | None = None) -> tuple[nn.Module, EpochMetrics]:
    teacher = expose_attention(tiny_vit()).requires_grad_(False)
    student = build_student(teacher, SETTINGS)
    scale = PixelScale(PREPROCESSING, CPU)
    scale_weights(student, SETTINGS)
    observe_activations(student, SETTINGS, pixels(6), scale, batch_size=6, advance=no_advance)
    settings = DistillationSettings(
        epochs=1, batch_size=5, optimizer="sgd", learning_rate=1e-3, precision="fp32"
    )
    epochs: list[EpochMetrics] = []
    with contextlib.ExitStack() as stack:
        if most is not None:
            seen = stack.enter_context(room_for(student, most))
            stack.enter_context(pytest.warns(RuntimeWarning, match=r"distillation\.batch_size"))
        distill(
            student,
            teacher,
            pixels(10),
            settings,
            PREPROCESSING,
            seed=0,
            checkpoint=folder / f"{most}.safetensors",
            on_epoch=epochs.append,
            advance=no_advance,
        )
    if most is not None:
        assert sum(size for size in seen if size <= most) == 10
    return student, epochs[0]


@pytest.mark.parametrize("most", [1, 2, 4])
def test_distillation_makes_the_same_steps(tmp_path: Path, most: int) -> None:
    expected, losses = trained(tmp_path)
    student, others = trained(tmp_path, most)
    assert vars(others) == pytest.approx(vars(losses), rel=1e-5, abs=1e-6)
    moved = 0.0
    start = expose_attention(tiny_vit()).state_dict()
    for name, value in expected.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value, rtol=1e-4, atol=1e-7)
        if name in start:
            moved = max(moved, float((value - start[name]).abs().max()))
    assert moved > 1e-5, "else there was no step"
