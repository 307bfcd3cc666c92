from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import timm
import torch
from _helpers.calib_cases import (
    PIXEL_SCALE,
    PREPROCESSING,
    no_advance,
    pixels,
    quantization,
    set_quantizers,
)
from _helpers.tiny_students import images, tiny_swin_student, tiny_swin_teacher, tiny_vit
from torch import Tensor, nn

from mimiq_calib.conversion.convert import expose_attention, insert_quantizers
from mimiq_calib.fitting_batch import FittingBatch
from mimiq_calib.observation import observe_activations, scale_weights
from mimiq_calib.quantizers.quantizer import Quantizer
from mimiq_calib.recipe import AugmentationSettings, ReconstructionSettings
from mimiq_calib.reconstruction import link_training
from mimiq_calib.reconstruction import reconstruct as reconstructing
from mimiq_calib.reconstruction.chain import Chain
from mimiq_calib.reconstruction.importance import output_importance
from mimiq_calib.reconstruction.link_training import LinkMetrics, LinkTraining
from mimiq_calib.reconstruction.reconstruct import reconstruct, steps_of_reconstruction
from mimiq_calib.reconstruction.view_memory import ViewMemory
from mimiq_runtime.errors import InvalidInputError, RunDirectoryError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGES = pixels(6)
LINKS = ["stem", "blocks.0", "blocks.1", "tail"]


class Killed(BaseException):
    """The process ends here."""


def settings(**others: Any) -> ReconstructionSettings:
    """Small and in single precision; two views, so that the second is changed."""
    chosen = {"iterations": 6, "batch_size": 4, "views": 2, "precision": "fp32"}
    rates = {"learning_rate": 1e-3, "scale_learning_rate": 1e-2}
    return ReconstructionSettings(**chosen | rates | others)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return expose_attention(tiny_vit())


@pytest.fixture(scope="module")
def calibrated(teacher: nn.Module) -> nn.Module:
    return calibrated_at(teacher, 4, 4)


def calibrated_at(teacher: nn.Module, weight_bits: int, activation_bits: int) -> nn.Module:
    chosen = quantization(weight_bits, activation_bits)
    student = copy.deepcopy(teacher)
    insert_quantizers(student, chosen)
    scale_weights(student, chosen)
    observe_activations(student, chosen, IMAGES, PIXEL_SCALE, batch_size=6, advance=no_advance)
    return student


class Reconstruction:
    """Reconstructions of copies of one student."""

    def __init__(self, teacher: nn.Module, calibrated: nn.Module, folder: Path) -> None:
        self.teacher, self.calibrated = teacher, calibrated
        self.checkpoint = folder / "checkpoint.safetensors"
        self.metrics: list[tuple[int, LinkMetrics]] = []
        self.steps = 0

    def run(self, chosen: ReconstructionSettings, *, seed: int = 0) -> nn.Module:
        student = copy.deepcopy(self.calibrated)
        reconstruct(
            student,
            self.teacher,
            IMAGES,
            chosen,
            PREPROCESSING,
            seed=seed,
            checkpoint=self.checkpoint,
            on_link=lambda number, metrics: self.metrics.append((number, metrics)),
            advance=self.advance,
        )
        return student

    def advance(self, steps: int, _note: str = "") -> None:
        self.steps += steps


@pytest.fixture
def reconstruction(teacher: nn.Module, calibrated: nn.Module, tmp_path: Path) -> Reconstruction:
    return Reconstruction(teacher, calibrated, tmp_path)


def equal(left: nn.Module, right: nn.Module) -> bool:
    first, second = left.state_dict(), right.state_dict()
    return list(first) == list(second) and all(torch.equal(first[k], second[k]) for k in first)


def normalised(unit: Tensor) -> Tensor:
    return PIXEL_SCALE.normalise(unit)


@torch.no_grad()
def outputs_of(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """What the named modules give, by hooks on the whole model, and the logits."""
    seen: dict[str, Tensor] = {}
    names = ("blocks.0", "blocks.1")
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: seen.update({name: output})
        )
        for name in names
    ]
    handles.append(
        model.get_submodule("blocks.0").register_forward_pre_hook(
            lambda _m, inputs: seen.update(stem=inputs[0])
        )
    )
    seen["tail"] = model(x)
    for handle in handles:
        handle.remove()
    return seen


class TestChain:
    @pytest.mark.parametrize(
        "arguments",
        [
            {},
            {"name": "deit_tiny_distilled_patch16_224"},
            {"reg_tokens": 3},
            {"global_pool": "avg"},
            {"class_token": False, "global_pool": "avg", "pre_norm": True},
            {"block_fn": timm.models.vision_transformer.ResPostBlock},
            {"fc_norm": True, "final_norm": False, "global_pool": "avg"},
        ],
        ids=[
            "plain",
            "distilled",
            "registers",
            "average",
            "no-class-token",
            "post-norm",
            "fc-norm",
        ],
    )
    def test_gives_the_models_logits(self, arguments: dict[str, Any]) -> None:
        model = expose_attention(tiny_vit(**arguments))
        chain = Chain(model)
        assert [link.name for link in chain.links] == LINKS
        with torch.no_grad():
            torch.testing.assert_close(chain(images(3)), model(images(3)))

    def test_swin_with_its_merging_between_blocks(self) -> None:
        model = tiny_swin_teacher()
        chain = Chain(model)
        names = [link.name for link in chain.links]
        assert (names[0], names[-1]) == ("stem", "tail")
        stages = [name.split(".")[1] for name in names[1:-1]]
        assert stages == sorted(stages)
        assert any(name.endswith("downsample") for name in names)
        with torch.no_grad():
            torch.testing.assert_close(chain(images(2)), model(images(2)))

    def test_every_parameter_of_a_layer_belongs_to_one_link(self, calibrated: nn.Module) -> None:
        owners = [id(p) for link in Chain(calibrated).links for p in link.parameters()]
        assert len(owners) == len(set(owners))
        inside = {id(p) for name, p in calibrated.named_parameters() if "." in name}
        assert set(owners) == inside

    def test_the_model_is_left_as_it_was(self, teacher: nn.Module) -> None:
        chain = Chain(teacher)
        with torch.no_grad():
            chain(images(1))
        assert not any(module._forward_pre_hooks for module in teacher.modules())

    def test_a_model_without_blocks(self) -> None:
        with pytest.raises(UnsupportedModelError, match="no blocks"):
            Chain(nn.Sequential(nn.Linear(2, 2)))

    def test_a_model_that_is_no_chain(self, reconstruction: Reconstruction) -> None:
        class Detour(type(reconstruction.teacher)):  # type: ignore[misc]
            def forward(self, x: Tensor) -> Tensor:
                return super().forward(x) + 1

        reconstruction.teacher = copy.deepcopy(reconstruction.teacher)
        reconstruction.teacher.__class__ = Detour
        with pytest.raises(UnsupportedModelError, match=r"no chain.*fine_tuning=distill"):
            reconstruction.run(settings())


class TestImportance:
    def test_is_the_fisher_information(self, teacher: nn.Module) -> None:
        """All classes in turn, weighed by their probability, instead of drawn ones."""
        repeated = images(2).repeat(600, 1, 1, 1)
        estimated = output_importance(
            Chain(teacher),
            repeated,
            temperature=5.0,
            batch_size=200,
            fit=FittingBatch("x"),
            generator=torch.Generator().manual_seed(0),
        )
        exact = self.exact(teacher, images(2), temperature=5.0)
        for given, expected in zip(estimated, exact, strict=True):
            assert given.shape == expected.shape
            assert float(given.mean()) == pytest.approx(1.0, rel=1e-5)
            error = (given - expected).square().sum() / expected.square().sum()
            # 600 draws an image: a relative variance of about 2 / 600 is left.
            assert float(error) < 0.02
        last = estimated[-1]
        assert float(last[1:].abs().max()) == 0, "the class token alone is read"

    @staticmethod
    def exact(teacher: nn.Module, x: Tensor, *, temperature: float) -> list[Tensor]:
        chain = Chain(teacher)
        totals = []
        for place in range(len(LINKS) - 1):
            total = torch.zeros(())
            for image in x.split(1):
                value = image
                for link in chain.links[: place + 1]:
                    value = link(value)
                value = value.detach().requires_grad_(True)
                rest = value
                for link in chain.links[place + 1 :]:
                    rest = link(rest)
                logs = torch.log_softmax(rest / temperature, -1)[0]
                for log in logs:
                    (gradient,) = torch.autograd.grad(log, value, retain_graph=True)
                    total = total + log.detach().exp() * gradient[0].square()
            totals.append(total / total.mean())
        return totals

    def test_outputs_that_do_not_matter(self, teacher: nn.Module) -> None:
        deaf = copy.deepcopy(teacher)
        deaf.head.weight.zero_()
        found = output_importance(
            Chain(deaf),
            images(2),
            temperature=5.0,
            batch_size=2,
            fit=FittingBatch("x"),
            generator=torch.Generator().manual_seed(0),
        )
        assert all(torch.equal(one, torch.ones_like(one)) for one in found)


class TestReconstruct:
    def test_blocks_come_closer_to_the_teacher(self, reconstruction: Reconstruction) -> None:
        student = reconstruction.run(settings(iterations=40))
        assert [number for number, _ in reconstruction.metrics] == [0, 1, 2, 3]
        assert [metrics.link for _, metrics in reconstruction.metrics] == LINKS
        for _, metrics in reconstruction.metrics:
            assert 0 <= metrics.error_after <= metrics.error_before
        for _, metrics in reconstruction.metrics[1:]:
            assert metrics.error_after < 0.9 * metrics.error_before
        x = normalised(IMAGES.float() / 255)
        right = outputs_of(reconstruction.teacher, x)
        before = outputs_of(reconstruction.calibrated, x)
        after = outputs_of(student, x)
        for name in LINKS[1:]:
            worse = (before[name] - right[name]).square().mean()
            assert (after[name] - right[name]).square().mean() < worse
        assert not any(parameter.requires_grad for parameter in student.parameters())

    def test_errors_by_hand(self, reconstruction: Reconstruction) -> None:
        """Without training and weights: from hooks on the whole models, in numpy."""
        chosen = settings(iterations=1, views=1, weigh_by_importance=False)
        chosen = chosen.model_copy(update={"learning_rate": 1e-12, "scale_learning_rate": 0.0})
        reconstruction.run(chosen)
        x = normalised(IMAGES.float() / 255)
        right = outputs_of(reconstruction.teacher, x)
        given = outputs_of(reconstruction.calibrated, x)
        for _, metrics in reconstruction.metrics:
            exact = right[metrics.link].double().numpy()
            noise = given[metrics.link].double().numpy() - exact
            expected = np.square(noise).sum() / np.square(exact).sum()
            assert metrics.error_before == pytest.approx(expected, rel=1e-3)

    def test_the_same_again_and_another_seed(self, reconstruction: Reconstruction) -> None:
        first = reconstruction.run(settings())
        reconstruction.checkpoint.unlink()
        assert equal(reconstruction.run(settings()), first)
        reconstruction.checkpoint.unlink()
        assert not equal(reconstruction.run(settings(), seed=1), first)

    @pytest.mark.parametrize("last", range(len(LINKS)), ids=LINKS)
    def test_resumed_after_a_link(
        self, reconstruction: Reconstruction, last: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = reconstruction.run(settings())
        expected = list(reconstruction.metrics)
        reconstruction.checkpoint.unlink()
        reconstruction.metrics.clear()
        original = reconstructing.save_checkpoint

        def save_and_die(*arguments: Any, next_epoch: int) -> None:
            original(*arguments, next_epoch=next_epoch)
            if next_epoch == last + 1:
                raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(reconstructing, "save_checkpoint", save_and_die)
            with pytest.raises(Killed):
                reconstruction.run(settings())
        torch.rand(3)
        reconstruction.steps = 0
        assert equal(reconstruction.run(settings()), whole)
        assert reconstruction.metrics == expected, "each link once"
        assert reconstruction.steps == steps_of_reconstruction(settings(), reconstruction.teacher)

    def test_a_link_that_became_worse_is_put_back(self, reconstruction: Reconstruction) -> None:
        chosen = settings(iterations=1, learning_rate=3.0)
        student = reconstruction.run(chosen)
        for _, metrics in reconstruction.metrics:
            assert metrics.error_after == metrics.error_before
        expected = reconstruction.calibrated.state_dict()
        for name, value in student.state_dict().items():
            # The scale's way through the logarithm and back.
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=0)

    def test_divergence_keeps_the_last_good_link(
        self, reconstruction: Reconstruction, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        good = reconstruction.run(settings())
        reconstruction.checkpoint.unlink()
        original = LinkTraining._mixed

        def poisoned(self: LinkTraining, *arguments: Any) -> Tensor:
            return original(self, *arguments) * (float("nan") if self._number == 2 else 1.0)

        with monkeypatch.context() as patch:
            patch.setattr(LinkTraining, "_mixed", poisoned)
            with pytest.raises(InvalidInputError, match=r"blocks\.1 diverged.*learning_rate"):
                reconstruction.run(settings())
        assert equal(reconstruction.run(settings()), good), "from the checkpoint"

    def test_a_checkpoint_of_something_else(self, reconstruction: Reconstruction) -> None:
        reconstruction.checkpoint.write_bytes(b"nonsense")
        with pytest.raises(RunDirectoryError, match="start this stage anew"):
            reconstruction.run(settings())

    def test_nothing_moves_where_nothing_is_quantized(self, reconstruction: Reconstruction) -> None:
        """Students without error have nothing to learn: every link already gives its target."""
        set_quantizers(reconstruction.calibrated, enabled=False)
        try:
            reconstruction.run(settings(iterations=2))
        finally:
            set_quantizers(reconstruction.calibrated, enabled=True)
        for _, metrics in reconstruction.metrics:
            assert metrics.error_before < 1e-10


def test_swin_is_reconstructed(tmp_path: Path) -> None:
    """Blocks on a grid, windows, patch merging: outputs of any shape, and importance for each."""
    teacher, metrics = tiny_swin_teacher(), []
    student = copy.deepcopy(tiny_swin_student(4, 4))
    reconstruct(
        student,
        teacher,
        IMAGES,
        settings(iterations=20),
        PREPROCESSING,
        seed=0,
        checkpoint=tmp_path / "checkpoint.safetensors",
        on_link=lambda _number, found: metrics.append(found),
        advance=no_advance,
    )
    assert [found.link for found in metrics] == [link.name for link in Chain(teacher).links]
    for found in metrics[1:]:
        assert found.error_after < found.error_before


class TestInputs:
    @pytest.fixture
    def inputs(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[Tensor, Tensor]]]:
        seen: list[tuple[Tensor, Tensor, Tensor]] = []
        original = LinkTraining._mixed

        def spy(self: LinkTraining, quantized: Tensor, exact: Tensor, step: int) -> Tensor:
            mixed = original(self, quantized, exact, step)
            if self._number:
                seen.append((quantized, exact, mixed))
            return mixed

        monkeypatch.setattr(LinkTraining, "_mixed", spy)
        return seen  # type: ignore[return-value]

    @pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
    def test_exact_values_are_mixed_in(
        self, reconstruction: Reconstruction, inputs: list[Any], share: float
    ) -> None:
        reconstruction.run(settings(iterations=3, exact_input_share=share))
        taken = total = 0
        for quantized, exact, mixed in inputs:
            different = quantized != exact
            assert bool(((mixed == quantized) | (mixed == exact)).all())
            taken += int((mixed == exact)[different].sum())
            total += int(different.sum())
        assert taken / total == pytest.approx(share, abs=0.02)

    @staticmethod
    def views(chosen: ReconstructionSettings) -> Tensor:
        memory = ViewMemory(torch.device("cpu"))
        return reconstructing._views(IMAGES, chosen, PREPROCESSING, 0, memory)[:]

    def test_first_view_is_the_image_itself(self) -> None:
        chosen = settings(views=3)
        views = self.views(chosen)
        plain = normalised(IMAGES.float() / 255)
        assert views.shape == (18, 3, 32, 32)
        torch.testing.assert_close(views[:6], plain)
        assert not torch.allclose(views[6:12], plain, atol=0.1)
        assert not torch.allclose(views[6:12], views[12:], atol=0.1)
        still = chosen.model_copy(update={"augmentation": AugmentationSettings(enabled=False)})
        copies = self.views(still)
        torch.testing.assert_close(copies, plain.repeat(3, 1, 1, 1))

    def test_views_are_seen_equally_often(self) -> None:
        batches = link_training._Batches(10, 4, seed=1, number=2)
        seen = torch.cat([batches.next() for _ in range(6)])
        assert sorted(seen.tolist()) == sorted(2 * list(range(10)))
        assert seen[:10].tolist() != seen[10:].tolist()


@pytest.mark.parametrize(("bits", "factor"), [(3, 2.0), (4, 1.0), (8, 1 / 16)])
def test_learning_rates_follow_the_steps_of_their_grids(bits: int, factor: float) -> None:
    chosen = settings(learning_rate=1e-4, scale_learning_rate=1e-3)
    assert chosen.at_bits(bits).learning_rate == pytest.approx(factor * 1e-4)
    assert chosen.at_bits(bits).scale_learning_rate == 1e-3
    assert chosen.scale_rate_at(2**bits) == pytest.approx(factor * 1e-3)
    fixed = settings(learning_rate=1e-4, scale_learning_rate=1e-3, follow_grid=False)
    assert fixed.at_bits(bits) == fixed
    assert fixed.scale_rate_at(2**bits) == 1e-3


def test_every_scale_has_the_rate_of_its_own_grid(
    teacher: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At W4A8 with the first and the last layer at 8 bits: the weights of the blocks alone."""
    rates: dict[int, float] = {}
    original = torch.optim.Adam

    def record(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        rates.update({id(p): group["lr"] for group in groups for p in group["params"]})
        return original(groups)

    monkeypatch.setattr(torch.optim, "Adam", record)
    student = calibrated_at(teacher, 4, 8)
    found: dict[str, tuple[int, float]] = {}

    def look(_number: int, _metrics: LinkMetrics) -> None:
        for name, module in student.named_modules():
            if isinstance(module, Quantizer) and not module.recomputed:
                logarithm = module.get_parameter("parametrizations.scale.original")
                if id(logarithm) in rates:
                    found[name] = (module.grid.qmax - module.grid.qmin + 1, rates[id(logarithm)])

    reconstruct(
        student,
        teacher,
        IMAGES,
        settings(iterations=1),
        PREPROCESSING,
        seed=0,
        checkpoint=tmp_path / "checkpoint.safetensors",
        on_link=look,
        advance=no_advance,
    )
    of_blocks = {n: r for n, r in found.items() if "blocks." in n and "weight_quantizer" in n}
    others = {n: r for n, r in found.items() if n not in of_blocks}
    assert len(of_blocks) == 2 * 4
    assert set(of_blocks.values()) == {(16, 1e-2)}
    assert set(others.values()) == {(256, 1e-2 / 16)}
    assert "head.weight_quantizer" in others
