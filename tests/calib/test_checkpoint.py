from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from _helpers.calib_cases import (
    CPU,
    PIXEL_SCALE,
    PREPROCESSING,
    distillation,
    no_advance,
    pixels,
    quantization,
)
from _helpers.tiny_students import tiny_vit
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mimiq_calib.conversion.convert import (
    build_student,
    expose_attention,
    insert_quantizers,
    quantizers_of,
)
from mimiq_calib.distillation import checkpoint as checkpoints
from mimiq_calib.distillation.checkpoint import load_checkpoint, save_checkpoint
from mimiq_calib.distillation.distill import EpochMetrics, _EpochImages, distill
from mimiq_calib.distillation.losses import logit_distillation_loss, structural_attention_loss
from mimiq_calib.distillation.parametrization import (
    learn_scales_in_logarithm,
    step_as_scales_would_,
)
from mimiq_calib.observation import observe_activations, scale_weights
from mimiq_calib.processes import Processes
from mimiq_calib.quantizers.quantizer import Quantizer, Skew
from mimiq_calib.taps import attention_taps
from mimiq_runtime.errors import InvalidInputError, RunDirectoryError
from mimiq_runtime.grid import Grid
from mimiq_runtime.quantization_table import TensorKind

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mimiq_calib.recipe import DistillationSettings

IMAGES = pixels(6)  # two batches of 4 and 2: a last batch that is smaller


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return expose_attention(tiny_vit())


@pytest.fixture(scope="module")
def calibrated(teacher: nn.Module) -> nn.Module:
    settings = quantization(4, 4)
    student = copy.deepcopy(teacher)
    insert_quantizers(student, settings)
    scale_weights(student, settings)
    observe_activations(student, settings, IMAGES, PIXEL_SCALE, batch_size=6, advance=no_advance)
    return student


class Training:
    """Distillations of copies of one student."""

    def __init__(self, teacher: nn.Module, calibrated: nn.Module, folder: Path) -> None:
        self.teacher, self.calibrated = teacher, calibrated
        self.checkpoint = folder / "checkpoint.safetensors"
        self.metrics: list[EpochMetrics] = []

    def run(
        self,
        settings: DistillationSettings,
        *,
        advance: Callable[[int, str], None] = no_advance,
        seed: int = 0,
        images: Tensor = IMAGES,
        student: nn.Module | None = None,
    ) -> dict[str, Tensor]:
        student = student or copy.deepcopy(self.calibrated)
        distill(
            student,
            self.teacher,
            images,
            settings,
            PREPROCESSING,
            seed=seed,
            checkpoint=self.checkpoint,
            on_epoch=self.metrics.append,
            advance=advance,
        )
        assert not any(parameter.requires_grad for parameter in student.parameters())
        return student.state_dict()

    def anew(self, settings: DistillationSettings, **others: Any) -> dict[str, Tensor]:
        self.checkpoint.unlink(missing_ok=True)
        self.metrics.clear()
        return self.run(settings, **others)


@pytest.fixture
def training(teacher: nn.Module, calibrated: nn.Module, tmp_path: Path) -> Training:
    return Training(teacher, calibrated, tmp_path)


def killed_at(step: int) -> Callable[[int, str], None]:
    counted = 0

    def advance(steps: int, _note: str) -> None:
        nonlocal counted
        counted += steps
        if counted >= step:
            raise Killed

    return advance


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("step", [1, 3, 4, 5], ids="killed at step {}".format)
def test_resumed_is_equal_to_undisturbed(training: Training, optimizer: str, step: int) -> None:
    settings = distillation(
        epochs=3, optimizer=optimizer, learning_rate=1e-3, warmup_epochs=1, weight_decay=0.01
    )
    undisturbed = training.anew(settings)
    metrics = list(training.metrics)
    with pytest.raises(Killed):
        training.anew(settings, advance=killed_at(step))
    with safe_open(training.checkpoint, framework="pt") as file:
        assert file.metadata()["next_epoch"] == str((step - 1) // 2)
    # Whatever else drew numbers in between.
    torch.rand(17)
    assert equal(training.run(settings), undisturbed)
    assert training.metrics[-1] == metrics[-1]
    assert len({record.epoch for record in training.metrics}) == 3, "no epoch's metrics are lost"


def test_a_finished_training_is_not_trained_further(training: Training) -> None:
    settings = distillation(epochs=2, learning_rate=1e-3)
    finished = training.anew(settings)
    steps: list[int] = []
    again = training.run(settings, advance=lambda count, _note: steps.append(count))
    assert equal(again, finished)
    assert steps == [4]
    assert len(training.metrics) == 2


def test_an_error_while_metrics_are_written_repeats_the_epoch(training: Training) -> None:
    settings = distillation(epochs=2, learning_rate=1e-3)
    undisturbed = training.anew(settings)

    class Full(list):
        def append(self, item: EpochMetrics) -> None:
            if item.epoch == 1:
                raise Killed
            super().append(item)

    training.metrics = Full()
    with pytest.raises(Killed):
        training.anew(settings)
    training.metrics = []
    assert equal(training.run(settings), undisturbed)
    assert [record.epoch for record in training.metrics] == [1]


def test_grids_and_first_scales_are_not_chosen_again(training: Training) -> None:
    """Resumed from a student that was never calibrated, and whose grids are others."""
    settings = distillation(epochs=2, learning_rate=1e-3)
    skewed = [q for q in quantizers_of(training.calibrated) if q.skew is Skew.ANY and q.bits == 4]
    for quantizer in skewed:
        quantizer.grid = Grid.skewed(quantizer.bits, 3)
    try:
        undisturbed = training.anew(settings)
        for step in (1, 3):
            with pytest.raises(Killed):
                training.anew(settings, advance=killed_at(step))
            student = build_student(training.teacher, quantization(4, 4))
            assert equal(training.run(settings, student=student), undisturbed)
            names = {q.name for q in quantizers_of(student) if q.grid == Grid(-3, 12)}
            assert names == {q.name for q in skewed}
    finally:
        for quantizer in skewed:
            quantizer.grid = Grid.signed(quantizer.bits)


def test_shares_of_several_processes_make_up_each_batch() -> None:
    """With 6 images in batches of 4, the last of three processes has none of the second batch."""
    settings = distillation(batch_size=4)

    def of(processes: Processes) -> list[tuple[Tensor, float, int]]:
        made = _EpochImages(IMAGES, settings, PREPROCESSING, 0, CPU, processes)
        return list(made.of_epoch(1))

    whole = of(Processes())
    assert [(len(batch), share, size) for batch, share, size in whole] == [(4, 1, 4), (2, 1, 2)]
    parts = [of(Processes(rank, 3)) for rank in range(3)]
    for number, (batch, _, size) in enumerate(whole):
        shares = [part[number] for part in parts]
        assert sum(share for _, share, _ in shares) == pytest.approx(1)
        assert {others for _, _, others in shares} == {size}
        for rank, (own, share, _) in enumerate(shares):
            expected = batch[rank::3] if share else batch[:1]
            assert torch.equal(own, expected), "the same changes, whoever makes them"
    assert parts[2][1][1] == 0


def test_seed_and_settings_matter(training: Training) -> None:
    settings = distillation(learning_rate=1e-3)
    first = training.anew(settings)
    assert equal(training.anew(settings), first)
    assert not equal(training.anew(settings, seed=1), first)
    assert not equal(training.anew(distillation(learning_rate=2e-3)), first)


def test_every_epoch_and_seed_has_its_own_order_and_augmentation() -> None:
    """One picture, so that the order of pictures cannot be what differs."""

    def batches(images: Tensor, seed: int, epoch: int) -> list[Tensor]:
        made = _EpochImages(images, distillation(batch_size=2), PREPROCESSING, seed, CPU)
        return [batch for batch, _, _ in made.of_epoch(epoch)]

    same = IMAGES[:1].expand(4, -1, -1, -1)
    changed = [batches(same, seed, epoch) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    flat = [image.sum().item() for batch_list in changed for batch in batch_list for image in batch]
    assert len(set(flat)) == 12
    assert all(torch.equal(a, b) for a, b in zip(batches(same, 0, 1), changed[1], strict=True))

    plain = distillation(batch_size=4, augmentation={"enabled": False})
    orders = set()
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        epochs = _EpochImages(IMAGES, plain, PREPROCESSING, seed, CPU)
        seen = torch.cat([batch for batch, _, _ in epochs.of_epoch(epoch)])
        expected = PIXEL_SCALE.normalise(PIXEL_SCALE.to_unit(IMAGES))
        order = [int((expected - image).flatten(1).abs().sum(1).argmin()) for image in seen]
        assert sorted(order) == list(range(6)), "every picture once"
        torch.testing.assert_close(seen, expected[order])
        orders.add(tuple(order))
    assert len(orders) == 3


def test_global_randomness_is_left_alone(training: Training) -> None:
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    training.anew(distillation())
    assert torch.equal(torch.rand(3), expected)


def test_state_dict_is_plain_and_the_teacher_is_unchanged(training: Training) -> None:
    before = {name: value.clone() for name, value in training.teacher.state_dict().items()}
    after = training.anew(distillation(learning_rate=1e-2))
    assert list(after) == list(training.calibrated.state_dict())
    assert equal(training.teacher.state_dict(), before)
    changed = [
        name
        for name, value in after.items()
        if not torch.equal(value, training.calibrated.state_dict()[name])
    ]
    assert len(changed) > 0.9 * len(after), "weights, biases and scales all learn"


def test_only_scales_learn_while_warming_up(training: Training) -> None:
    after = training.anew(distillation(epochs=2, warmup_epochs=2, learning_rate=1e-2))
    before = training.calibrated.state_dict()
    for name, value in after.items():
        scale = name.endswith(".scale")
        assert torch.equal(value, before[name]) != scale, name


def test_training_lowers_the_loss_without_augmentation(training: Training) -> None:
    settings = distillation(
        epochs=12, learning_rate=1e-3, augmentation={"enabled": False}, batch_size=6
    )
    training.anew(settings)
    losses = [record.loss for record in training.metrics]
    assert losses[-1] < 0.8 * losses[0], losses


def test_metrics_are_the_losses_of_the_epoch(training: Training) -> None:
    """Nothing learns: they are those of the calibrated student, over both batches together."""
    settings = distillation(
        learning_rate=1e-30,
        scale_learning_rate=0.0,
        augmentation={"enabled": False},
        temperature=3.0,
        logit_weight=0.5,
        structure_weight=2.0,
        optimizer="sgd",
    )
    training.anew(settings)
    (record,) = training.metrics
    x = PIXEL_SCALE.normalise(PIXEL_SCALE.to_unit(IMAGES))
    with torch.no_grad():
        with attention_taps(training.teacher, "head_outputs") as taps:
            target, teacher_heads = training.teacher(x), list(taps)
        student = copy.deepcopy(training.calibrated)
        with attention_taps(student, "head_outputs") as taps:
            logits = student(x)
            student_heads = [*taps]
    logit = float(logit_distillation_loss(logits, target, temperature=3.0))
    structure = float(structural_attention_loss(student_heads, teacher_heads, prefix_tokens=1))
    # exp(log(scale)) is a rounding away from the scale: a code at a tie may fall otherwise.
    assert record.logit == pytest.approx(logit, rel=0.02)
    assert record.structure == pytest.approx(structure, rel=0.02)
    assert record.loss == pytest.approx(0.5 * record.logit + 2 * record.structure, rel=1e-5)
    agreement = float((logits.argmax(1) == target.argmax(1)).float().mean())
    assert record.agreement == pytest.approx(agreement, abs=1e-6)
    assert record.epoch == 0


def test_divergence_says_what_to_do_and_keeps_the_last_good_epoch(training: Training) -> None:
    settings = distillation(epochs=2)
    with pytest.raises(Killed):
        training.anew(settings, advance=killed_at(3))
    before = training.checkpoint.read_bytes()
    broken = {name: value.clone() for name, value in load_file(training.checkpoint).items()}
    broken["model:head.weight"][0, 0] = math.nan
    with safe_open(training.checkpoint, framework="pt") as file:
        metadata = {**file.metadata(), "sha256": checkpoints._digest(broken)}
    save_file(broken, training.checkpoint, metadata=metadata)
    damaged = training.checkpoint.read_bytes()
    with pytest.raises(InvalidInputError, match=r"diverged.*distillation.learning_rate"):
        training.run(settings)
    assert training.checkpoint.read_bytes() == damaged != before


def test_gradients_are_clipped(training: Training) -> None:
    """With SGD, momentum included, no step is longer than learning rate, norm and 1.9 allow."""
    settings = distillation(
        optimizer="sgd",
        learning_rate=1.0,
        scale_learning_rate=0.0,
        gradient_clip=1e-3,
        batch_size=6,
    )
    after = training.anew(settings)
    before = training.calibrated.state_dict()
    moved = math.sqrt(
        sum(
            float((after[n] - before[n]).square().sum()) for n in before if not n.endswith(".scale")
        )
    )
    # Nesterov's first step is 1.9 gradients long; each weight is rounded to single precision.
    assert 0.5e-3 < moved < 1.9e-3 * 1.01


def test_sgd_steps_as_on_the_scales_themselves() -> None:
    """LSQ learns the step itself; a small step of its logarithm is the same relative change."""
    quantizer = Quantizer("q", TensorKind.WEIGHT, 4, Grid.signed(4), channels=3)
    steps = torch.tensor([2e-4, 0.03, 5.0])
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0)) * 4 * steps[:, None]
    with torch.no_grad():
        quantizer.scale.copy_(steps)
    pulled = torch.randn(3, 50, generator=torch.Generator().manual_seed(1)) * steps[:, None]

    def gradients() -> None:
        quantizer.zero_grad()
        (quantizer(x) * pulled).sum().backward()

    gradients()
    assert quantizer.scale.grad is not None
    relative = quantizer.scale.grad / steps
    rate = 1e-3 / float(relative.abs().max())
    with learn_scales_in_logarithm(nn.Sequential(quantizer)) as logarithms:
        optimizer = torch.optim.SGD(logarithms, lr=rate)
        gradients()
        step_as_scales_would_(logarithms)
        optimizer.step()
    # To first order: 1e-3 is squared, and the scale itself is rounded to 24 bits.
    torch.testing.assert_close(
        quantizer.scale.detach() / steps - 1, -rate * relative, rtol=1e-3, atol=1e-6
    )
    assert float(relative.abs().min()) > 0.02 * float(relative.abs().max())


def test_one_channel_can_be_distilled(tmp_path: Path) -> None:
    settings = quantization(4, 4)
    teacher = expose_attention(tiny_vit(in_chans=1))
    student = copy.deepcopy(teacher)
    insert_quantizers(student, settings)
    scale_weights(student, settings)
    gray = PREPROCESSING.model_copy(
        update={"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,)}
    )
    distill(
        student,
        teacher,
        pixels(4, channels=1),
        distillation(),
        gray,
        seed=0,
        checkpoint=tmp_path / "c",
        on_epoch=lambda _: None,
        advance=no_advance,
    )
    assert all((quantizer.scale > 0).all() for quantizer in quantizers_of(student))


class TestFile:
    def parts(self, optimizer: str = "adamw") -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        if optimizer == "adamw":
            return model, torch.optim.AdamW(model.parameters(), lr=0.1)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(torch.tensor([[1.0, -2.0, 3.0]])).square().sum().backward()
        optimizer.step()

    @pytest.mark.parametrize("kind", ["adamw", "sgd"])
    def test_round_trip(self, tmp_path: Path, kind: str) -> None:
        model, optimizer = self.parts(kind)
        self.step(model, optimizer)
        save_checkpoint(tmp_path / "c", model, optimizer, next_epoch=7)
        self.step(model, optimizer)
        other, other_optimizer = self.parts(kind)
        assert load_checkpoint(tmp_path / "c", other, other_optimizer) == 7
        self.step(other, other_optimizer)
        assert equal(other.state_dict(), model.state_dict())

    def test_no_file(self, tmp_path: Path) -> None:
        with pytest.raises(RunDirectoryError, match="does not hold the state"):
            load_checkpoint(tmp_path / "c", *self.parts())

    @pytest.mark.parametrize("grids", ['{"q": [-9, 300]}', '{"r": [-8, 7]}', "[", '{"q": 3}'])
    def test_grids_that_are_none(self, tmp_path: Path, grids: str) -> None:
        quantizer = Quantizer("q", TensorKind.ACTIVATION, 4, Grid.signed(4))
        optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
        tensors = {"model:scale": quantizer.scale.detach()}
        metadata = {"next_epoch": "1", "grids": grids}
        save_file(tensors, tmp_path / "c", metadata=metadata)
        with pytest.raises(RunDirectoryError, match="does not hold the state"):
            load_checkpoint(tmp_path / "c", quantizer, optimizer)

    @pytest.mark.parametrize("keep", [0, 7, 100, -1], ids=str)
    def test_damaged(self, tmp_path: Path, keep: int) -> None:
        path = tmp_path / "c"
        model, optimizer = self.parts()
        self.step(model, optimizer)
        save_checkpoint(path, model, optimizer, next_epoch=1)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(RunDirectoryError, match="remove it to start this stage anew"):
            load_checkpoint(path, *self.parts())

    def test_of_another_model(self, tmp_path: Path) -> None:
        save_checkpoint(tmp_path / "c", *self.parts(), next_epoch=1)
        other = nn.Linear(4, 2)
        with pytest.raises(RunDirectoryError, match="does not hold the state"):
            load_checkpoint(tmp_path / "c", other, torch.optim.SGD(other.parameters(), lr=0.1))

    @pytest.mark.parametrize(
        "metadata", [None, {}, {"next_epoch": "soon"}, {"next_epoch": "1"}], ids=str
    )
    def test_without_epoch_or_grids(self, tmp_path: Path, metadata: dict[str, str] | None) -> None:
        model, optimizer = self.parts()
        tensors = {f"model:{name}": value for name, value in model.state_dict().items()}
        save_file(tensors, tmp_path / "c", metadata=metadata)
        with pytest.raises(RunDirectoryError, match="does not hold the state"):
            load_checkpoint(tmp_path / "c", model, optimizer)
