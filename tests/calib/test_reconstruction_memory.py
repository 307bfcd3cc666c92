"""Too little memory while blocks are trained: values on the host, and fewer views at a time.

The error is raised where a GPU raises it, in a forward pass of too many views.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import torch
from _helpers.calib_cases import (
    CPU,
    PIXEL_SCALE,
    PREPROCESSING,
    no_advance,
    pixels,
    quantization,
)
from _helpers.little_memory import room_for
from _helpers.tiny_students import images, tiny_swin, tiny_vit
from torch import Tensor, nn

from mimiq_calib.conversion.convert import expose_attention, insert_quantizers
from mimiq_calib.fitting_batch import FittingBatch
from mimiq_calib.observation import observe_activations, scale_weights
from mimiq_calib.recipe import ReconstructionSettings
from mimiq_calib.reconstruction import view_memory
from mimiq_calib.reconstruction.chain import Chain
from mimiq_calib.reconstruction.importance import output_importance
from mimiq_calib.reconstruction.reconstruct import reconstruct
from mimiq_calib.reconstruction.view_memory import ViewMemory
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mimiq_calib.reconstruction.link_training import LinkMetrics

    Tight = Callable[[nn.Module, nn.Module], contextlib.AbstractContextManager[list[int]]]

IMAGES = pixels(6)
BLOCKS = {"ViT": "blocks.1", "Swin": "layers.1.blocks.0"}
MAKE = {"ViT": tiny_vit, "Swin": tiny_swin}
WARNING = r"reconstruction\.batch_size"


@pytest.fixture(params=["ViT", "Swin"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _steps_in_proportion(monkeypatch: pytest.MonkeyPatch) -> None:
    """SGD: Adam divides by the size of a gradient, and blows a rounding up where that is small."""
    monkeypatch.setattr(torch.optim, "Adam", torch.optim.SGD)


def reconstructed(
    folder: Path, kind: str, tight: Tight | None = None
) -> tuple[nn.Module, list[LinkMetrics]]:
    """At 8 bits, where a code that falls to the other side of an edge is a small thing."""
    teacher = expose_attention(MAKE[kind]()).requires_grad_(False)
    student = copy.deepcopy(teacher)
    insert_quantizers(student, quantization(8, 8))
    scale_weights(student, quantization(8, 8))
    observe_activations(
        student, quantization(8, 8), IMAGES, PIXEL_SCALE, batch_size=6, advance=no_advance
    )
    # Five of twelve views a step: some steps have two, and the parts are of different sizes.
    settings = ReconstructionSettings(
        iterations=4,
        batch_size=5,
        views=2,
        precision="fp32",
        learning_rate=0.1,
        scale_learning_rate=1e-3,
    )
    metrics: list[LinkMetrics] = []
    with tight(student, teacher) if tight else contextlib.nullcontext():
        reconstruct(
            student,
            teacher,
            IMAGES,
            settings,
            PREPROCESSING,
            seed=0,
            checkpoint=folder / "checkpoint.safetensors",
            on_link=lambda _number, found: metrics.append(found),
            advance=no_advance,
        )
    (folder / "checkpoint.safetensors").unlink()
    return student, metrics


def check_same(
    found: tuple[nn.Module, list[LinkMetrics]], expected: tuple[nn.Module, list[LinkMetrics]]
) -> None:
    """But for sums in another order: 1e-7 of weights and gradients. Steps are 1e-4 and more."""
    for record, other in zip(found[1], expected[1], strict=True):
        assert record.link == other.link
        assert record.error_before == pytest.approx(other.error_before, rel=1e-3)
        assert record.error_after == pytest.approx(other.error_after, rel=1e-3)
    for name, value in expected[0].state_dict().items():
        torch.testing.assert_close(found[0].state_dict()[name], value, rtol=1e-6, atol=2e-7)


class TestTheSame:
    @pytest.mark.parametrize("most", [1, 3])
    @pytest.mark.parametrize("gradients", [True, False], ids=["steps", "outputs"])
    def test_students_links(self, tmp_path: Path, kind: str, most: int, *, gradients: bool) -> None:
        expected = reconstructed(tmp_path, kind)
        tried: list[int] = []

        @contextlib.contextmanager
        def tight(student: nn.Module, _teacher: nn.Module) -> Any:
            with room_for(student, most, before=BLOCKS[kind], gradients=gradients) as seen:
                yield
                tried.extend(seen)

        with pytest.warns(RuntimeWarning, match=WARNING):
            found = reconstructed(tmp_path, kind, tight)
        check_same(found, expected)
        too_many = [size for size in tried if size > most]
        assert too_many == ([5, 3, 2] if most == 1 else [5]), "what fits is remembered"
        # Four steps of 5, 5, 2 and 5; or all twelve before and after them.
        assert sum(tried) - sum(too_many) == (17 if gradients else 24)

    @pytest.mark.parametrize("gradients", [True, False], ids=["importance", "targets"])
    def test_teachers_links(self, tmp_path: Path, kind: str, *, gradients: bool) -> None:
        expected = reconstructed(tmp_path, kind)
        with pytest.warns(RuntimeWarning, match=WARNING):
            found = reconstructed(
                tmp_path,
                kind,
                lambda _student, teacher: room_for(
                    teacher, 2, before=BLOCKS[kind], gradients=gradients
                ),
            )
        check_same(found, expected)

    def test_something_moved(self, tmp_path: Path) -> None:
        """Else the tests above would compare untrained students."""
        student, metrics = reconstructed(tmp_path, "ViT")
        start = tiny_vit().state_dict()
        weights = student.state_dict()
        for name in ("blocks.0.attn.proj.weight", "blocks.1.mlp.fc1.weight"):
            assert float((weights[name] - start[name]).abs().max()) > 5e-5
        assert all(record.error_after < record.error_before for record in metrics[1:3])


def test_what_is_remembered_holds_for_the_links_behind(tmp_path: Path) -> None:
    tried: dict[str, list[int]] = {}

    @contextlib.contextmanager
    def tight(student: nn.Module, _teacher: nn.Module) -> Any:
        with contextlib.ExitStack() as stack:
            for name in ("blocks.0", "blocks.1"):
                tried[name] = stack.enter_context(room_for(student, 3, before=name, gradients=True))
            yield

    with pytest.warns(RuntimeWarning, match=WARNING) as warned:
        reconstructed(tmp_path, "ViT", tight)
    assert tried["blocks.0"][0] == 5
    assert max(tried["blocks.1"]) == 3
    assert len(warned) == 1


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_one_view_is_the_end(tmp_path: Path, whose: str, *, gradients: bool) -> None:
    def tight(student: nn.Module, teacher: nn.Module) -> Any:
        model = student if whose == "student" else teacher
        return room_for(model, 0, before="blocks.0", gradients=gradients)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        with pytest.raises(InvalidInputError, match=rf"for one image at a time \({WARNING}\)"):
            reconstructed(tmp_path, "ViT", tight)


def test_importance_draws_the_same_classes() -> None:
    """Other draws would move it by far more than a rounding: there are 5 images, and 10 classes."""
    teacher = expose_attention(tiny_vit()).requires_grad_(False)

    def importance(most: int, seed: int = 0) -> list[Tensor]:
        with room_for(teacher, most, gradients=True):
            return output_importance(
                Chain(teacher),
                images(5),
                temperature=5.0,
                batch_size=4,
                fit=FittingBatch("x"),
                generator=torch.Generator().manual_seed(seed),
            )

    expected, other = importance(4), importance(4, seed=1)
    assert not torch.allclose(other[0], expected[0], rtol=0.1)
    for most in (1, 3):
        with pytest.warns(RuntimeWarning):
            found = importance(most)
        for one, two in zip(found, expected, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


class TestHost:
    """A device that is not the host, by another name for it: nothing else is at hand in tests."""

    def test_comes_first_and_changes_no_bit(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected, metrics = reconstructed(tmp_path, "ViT")
        monkeypatch.setattr(view_memory, "HOST", torch.device("cpu", 0))
        failures = 0

        def fail_once(_module: nn.Module, _inputs: Any) -> None:
            nonlocal failures
            if torch.is_grad_enabled() and not failures:
                failures += 1
                raise torch.OutOfMemoryError("CUDA out of memory")

        @contextlib.contextmanager
        def tight(student: nn.Module, _teacher: nn.Module) -> Any:
            handle = student.get_submodule("blocks.0").register_forward_pre_hook(fail_once)
            yield
            handle.remove()

        with pytest.warns(RuntimeWarning) as warned:
            found, others = reconstructed(tmp_path, "ViT", tight)
        assert failures == 1
        (message,) = [str(warning.message) for warning in warned]
        assert message.endswith("values of all views in the memory of the host from here on.")
        assert others == metrics
        for name, value in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], value), name

    def test_what_was_kept_and_what_comes_go_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The host is a device whose tensors hold nothing: whoever reads them is found out."""
        monkeypatch.setattr(view_memory, "HOST", torch.device("meta"))
        memory = ViewMemory(CPU)
        early = memory.keep(3)
        early[0:3] = torch.ones(3, 2)
        assert early[1:3].tolist() == [[1, 1], [1, 1]]

        def work(_size: int) -> ViewMemory:
            if memory.home == CPU:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return memory

        with pytest.warns(RuntimeWarning, match="host"):
            memory.with_gradients.run(1, work)
        late = memory.keep(1)
        late[0:1] = torch.ones(1, 2)
        for values in (early, late):
            with pytest.raises(NotImplementedError, match="meta"):
                values[0:1]


def test_values_are_read_by_slice_and_by_number() -> None:
    values = ViewMemory(CPU).keep(4)
    values[2:4] = torch.tensor([[2.0], [3.0]])
    values[0:2] = torch.tensor([[0.0], [1.0]])
    assert len(values) == 4
    assert values[torch.tensor([3, 1])].tolist() == [[3], [1]]
    assert values[::2].tolist() == [[0], [2]]
