"""Swin v1: its attention written out, its masks, and what a student of it quantizes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import timm
import torch
from _helpers.calib_cases import quantization, set_quantizers
from _helpers.swin_windows import neighbours, window_origins
from _helpers.tiny_students import tiny_swin
from timm.models.swin_transformer import PatchMerging, WindowAttention
from torch import nn

from mimiq_calib.conversion.convert import build_student, expose_attention, quantizers_of
from mimiq_calib.conversion.window_attention import ExposedWindowAttention
from mimiq_calib.taps import attention_taps
from mimiq_runtime.errors import UnsupportedModelError
from mimiq_runtime.quantization_table import TensorKind


@dataclass(frozen=True)
class Case:
    id: str
    arguments: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] = (32, 32)
    channels: int = 3

    def model(self) -> nn.Module:
        return tiny_swin(img_size=self.size, **self.arguments)

    def images(self, count: int = 2) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        return torch.randn(count, self.channels, *self.size, generator=generator)


CASES = [
    Case("plain"),
    Case("padded", {"window_size": 3}),
    Case("padded-oblong", {"window_size": (3, 5)}, size=(32, 40)),
    Case("oblong-windows", {"window_size": (4, 2)}),
    Case("windows-by-stage", {"window_size": ((2, 2), (4, 4))}),
    Case("odd-grid", {"window_size": 5}, size=(36, 36)),
    Case("always-partition", {"always_partition": True}),
    Case("no-qkv-bias", {"qkv_bias": False}),
    Case("head-dim", {"head_dim": 10}),
    Case("max-pool", {"global_pool": "max"}),
    Case("both-pools", {"global_pool": "catavgmax"}),
    Case("five-channels", {"in_chans": 5}, channels=5),
    Case("one-head", {"num_heads": (1, 1)}),
    Case("s3", {"name": "swin_s3_tiny_224"}),
    Case("dropouts", {"drop_rate": 0.5, "proj_drop_rate": 0.5, "attn_drop_rate": 0.5}),
]


@pytest.fixture(params=CASES, ids=[case.id for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@torch.no_grad()
def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x)


def test_quantizers_know_how_many_windows_an_image_brings(case: Case) -> None:
    """A window is an entry of the batch there, and an image is one everywhere else."""
    student = build_student(expose_attention(case.model()), quantization(8, 8))
    seen: dict[str, int] = {}
    handles = [
        quantizer.register_forward_pre_hook(
            lambda module, inputs: seen.update({module.name: len(inputs[0])})
        )
        for quantizer in quantizers_of(student)
        if quantizer.kind is TensorKind.ACTIVATION
    ]
    outputs(student, case.images(3))
    for handle in handles:
        handle.remove()
    for quantizer in quantizers_of(student):
        if quantizer.kind is TensorKind.ACTIVATION:
            assert seen[quantizer.name] == 3 * quantizer.windows, quantizer.name


def attentions(model: nn.Module) -> list[ExposedWindowAttention]:
    return [module for module in model.modules() if isinstance(module, ExposedWindowAttention)]


def test_teacher_and_idle_student_give_timms_outputs(case: Case) -> None:
    model = case.model()
    expected = outputs(model, case.images())
    assert expected.std() > 0.1, "outputs that tell something"
    teacher = expose_attention(model)
    assert list(teacher.state_dict()) == list(model.state_dict())
    assert not any(isinstance(module, WindowAttention) for module in teacher.modules())
    torch.testing.assert_close(outputs(teacher, case.images()), expected, rtol=1e-5, atol=1e-5)
    student = build_student(teacher, quantization())
    set_quantizers(student, enabled=False)
    torch.testing.assert_close(outputs(student, case.images()), expected, rtol=1e-5, atol=1e-5)
    set_quantizers(student, enabled=True)
    assert not torch.allclose(outputs(student, case.images()), expected, atol=1e-2)


def test_timms_fused_kernel_gives_the_same() -> None:
    model = tiny_swin()
    expected = outputs(expose_attention(model), CASES[0].images())
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.fused_attn = True
    torch.testing.assert_close(outputs(model, CASES[0].images()), expected, rtol=1e-5, atol=1e-5)


def test_every_quantizer_is_on_the_way(case: Case) -> None:
    student = build_student(expose_attention(case.model()), quantization())
    quantizers = list(quantizers_of(student))
    kinds = [quantizer.kind for quantizer in quantizers]
    # Two stages of two blocks: qkv, proj, fc1, fc2; the reduction, the head, the embedding.
    assert kinds.count(TensorKind.WEIGHT) == 4 * 4 + 3
    assert kinds.count(TensorKind.ACTIVATION) == 4 * 4 + 3 + 4 * 4
    assert not [m for m in student.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    seen: set[str] = set()
    for quantizer in quantizers:
        quantizer.register_forward_hook(lambda module, *_: seen.add(module.name))
    outputs(student, case.images())
    assert seen == {quantizer.name for quantizer in quantizers}


def test_the_classifier_has_the_bits_of_the_last_layer() -> None:
    settings = quantization(3, 5, first_layer_bits=7, last_layer_bits=6)
    student = build_student(expose_attention(tiny_swin()), settings)
    bits = {quantizer.name: quantizer.bits for quantizer in quantizers_of(student)}
    assert bits["head.fc.weight_quantizer"] == bits["head.fc.input_quantizer"] == 6
    assert bits["patch_embed.proj.weight_quantizer"] == 7
    assert bits["layers.1.downsample.reduction.weight_quantizer"] == 3


def origins(case: Case, block: nn.Module) -> np.ndarray:
    grid = (case.size[0] // 4, case.size[1] // 4)
    return window_origins(grid, block.window_size, block.shift_size)


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=["plain", "oblong-windows"])
def test_a_query_sees_the_keys_that_are_its_neighbours_in_the_image(case: Case) -> None:
    """From the geometry alone: in a shifted window, what the roll brought together is apart."""
    teacher = expose_attention(case.model())
    block = teacher.layers[0].blocks[1]
    expected = [neighbours(tokens, block.window_size) for tokens in origins(case, block)]
    got = block.attn.visible.numpy()
    np.testing.assert_array_equal(got, expected)
    assert 0.3 < got.mean() < 1
    assert teacher.layers[0].blocks[0].attn.visible is None
    assert block.attn.places is None


@pytest.mark.parametrize("shifted", [0, 1])
def test_pads_are_no_places_and_no_keys(shifted: int) -> None:
    case = CASES[2]
    block = expose_attention(case.model()).layers[0].blocks[shifted]
    places, visible = block.attn.places.numpy(), block.attn.visible.numpy()
    is_place = origins(case, block)[..., 0] >= 0
    np.testing.assert_array_equal(places, is_place)
    seen = np.broadcast_to(is_place[:, None], visible.shape)
    if shifted:
        seen = seen & (block.attn_mask.numpy() == 0)
    np.testing.assert_array_equal(visible[is_place], seen[is_place])
    assert visible.any(axis=-1).all(), "no query is left without a key"
    assert 0.5 < places.mean() < 1


def test_taps_are_products_before_bias_and_mask_and_weighted_values() -> None:
    """Of one window of the shifted block, from the weights alone."""
    model = tiny_swin()
    teacher = expose_attention(model)
    attention = model.layers[0].blocks[1].attn
    inputs: list[torch.Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    outputs(model, CASES[0].images())
    handle.remove()
    qkv = attention.qkv(inputs[0]).detach().double().numpy()
    with attention_taps(teacher, "logits") as taps:
        outputs(teacher, CASES[0].images())
        assert [tuple(tap.shape[1:]) for tap in taps] == [(2, 16, 16)] * 2 + [(3, 16, 16)] * 2
        logits = taps[1].double().numpy()
    with attention_taps(teacher, "head_outputs") as taps:
        outputs(teacher, CASES[0].images())
        heads = taps[1].double().numpy()
    assert logits.shape[0] == 2 * 4, "images times windows"
    window = 7  # the last of the second image: all its quarters are kept apart
    mask = model.layers[0].blocks[1].attn_mask[window % 4].double().numpy()
    table = attention.relative_position_bias_table.detach().double().numpy()
    places = [(row, column) for row in range(4) for column in range(4)]
    for head in range(2):
        q, k, v = (
            qkv[window, :, part * 24 + 12 * head : part * 24 + 12 * head + 12] for part in range(3)
        )
        expected = q @ k.T / 12**0.5
        assert abs(logits[window, head] - expected).max() < 1e-4
        bias = [[table[7 * (a - c + 3) + b - d + 3, head] for c, d in places] for a, b in places]
        weights = torch.from_numpy(expected + np.array(bias) + mask).softmax(-1).numpy()
        assert abs(heads[window, head] - weights @ v).max() < 1e-4


def test_other_sizes_than_one_are_refused() -> None:
    model = tiny_swin(strict_img_size=False)
    with pytest.raises(UnsupportedModelError, match="one img_size") as caught:
        expose_attention(model)
    assert caught.value.module == "layers.0.blocks.0.attn"


@pytest.mark.parametrize(
    ("arguments", "match"),
    [({"num_classes": 0}, "num_classes is 0"), ({"global_pool": ""}, "global_pool is ''")],
    ids=str,
)
def test_no_logits_are_refused(arguments: dict[str, Any], match: str) -> None:
    chosen = {"num_classes": 3, "img_size": 32, "window_size": 4} | arguments
    with torch.device("meta"):
        model = timm.create_model("swin_tiny_patch4_window7_224", **chosen)
    with pytest.raises(UnsupportedModelError, match=match):
        expose_attention(model)


class WiseMerging(PatchMerging):
    """Computes something else under the same parts."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def test_unknown_parts_are_refused_by_name() -> None:
    model = tiny_swin()
    model.layers[1].downsample.__class__ = WiseMerging
    with pytest.raises(UnsupportedModelError, match="WiseMerging") as caught:
        expose_attention(model)
    assert caught.value.module == "layers.1.downsample"
    model = tiny_swin()
    model.layers[0].blocks[1].attn.temperature = nn.Parameter(torch.ones(3))
    with pytest.raises(UnsupportedModelError, match="unknown to this version: temperature"):
        expose_attention(model)
