from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import timm
import torch
from _helpers.calib_cases import quantization, set_quantizers
from _helpers.tiny_students import UnfusedAttention, images, tiny_vit
from timm.layers import Attention, AttentionRope, GluMlp
from torch import nn

from mimiq_calib.conversion.attention import ExposedAttention
from mimiq_calib.conversion.convert import (
    build_student,
    expose_attention,
    insert_quantizers,
    quantizers_of,
)
from mimiq_calib.conversion.layers import QuantizedConv2d, QuantizedLinear
from mimiq_calib.taps import attention_taps
from mimiq_runtime.errors import UnsupportedModelError
from mimiq_runtime.quantization_table import TensorKind

HAS_GATE = "gated" in Attention.__init__.__annotations__


class GatedAttention(Attention):
    """Only a shorthand to build one: its instances become plain Attention."""

    def __init__(self, *arguments: Any, **others: Any) -> None:
        super().__init__(*arguments, gated=True, **others)


SHORTHANDS = {GatedAttention: Attention, UnfusedAttention: AttentionRope}


@dataclass(frozen=True)
class Case:
    id: str
    arguments: dict[str, Any] = field(default_factory=dict)
    prefix: int = 1
    linears: int = 2 * 4 + 1  # two blocks of qkv, proj, fc1, fc2, and the head
    channels: int = 3
    gated: bool = False

    def model(self) -> nn.Module:
        model = tiny_vit(**dict(self.arguments))
        for module in model.modules():
            module.__class__ = SHORTHANDS.get(type(module), type(module))
        return model

    def images(self) -> torch.Tensor:
        return images(3)[:, : self.channels]


CASES = [
    Case("plain"),
    Case("distilled", {"name": "deit_tiny_distilled_patch16_224"}, prefix=2, linears=2 * 4 + 2),
    Case("registers", {"reg_tokens": 3}, prefix=4),
    Case("layer-scale", {"init_values": 0.3}),
    Case("qk-norm", {"qk_norm": True}),
    Case("attention-norm", {"scale_attn_norm": True}),
    Case("mlp-norm", {"scale_mlp_norm": True}),
    Case("gated", {"attn_layer": GatedAttention}, linears=2 * 5 + 1, gated=True),
    Case("deit3", {"name": "deit3_small_patch16_224"}),
    Case("registers-by-name", {"name": "vit_small_patch14_reg4_dinov2"}, prefix=5),
    Case("gap-by-name", {"name": "vit_base_patch16_gap_224"}, prefix=0),
    Case("unfused-qkv", {"attn_layer": UnfusedAttention}, linears=2 * 6 + 1),
    Case("unfused-qkv-norm", {"attn_layer": UnfusedAttention, "qk_norm": True}, linears=2 * 6 + 1),
    Case("fused-qkv-of-rope", {"attn_layer": AttentionRope}),
    Case("average-pool", {"global_pool": "avg"}),
    Case("max-pool", {"global_pool": "max"}),
    Case("no-class-token", {"class_token": False, "global_pool": "avg"}, prefix=0),
    Case("no-embed-class", {"no_embed_class": True, "reg_tokens": 1}, prefix=2),
    Case("pre-norm", {"pre_norm": True}),
    Case("post-norm-blocks", {"block_fn": timm.models.vision_transformer.ResPostBlock}),
    Case("no-qkv-bias", {"qkv_bias": False}),
    Case("no-proj-bias", {"proj_bias": False}),
    Case("one-channel", {"in_chans": 1}, channels=1),
    Case("two-channels", {"in_chans": 2}, channels=2),
    Case("quick-gelu", {"act_layer": "quick_gelu"}),
    Case("one-head", {"num_heads": 1}),
    Case("fc-norm", {"fc_norm": True, "final_norm": False, "global_pool": "avg"}),
    Case(
        "dropouts",
        {
            "drop_rate": 0.5,
            "attn_drop_rate": 0.5,
            "drop_path_rate": 0.5,
            "proj_drop_rate": 0.5,
            "patch_drop_rate": 0.5,
            "pos_drop_rate": 0.5,
        },
    ),
]
CASES = [case for case in CASES if HAS_GATE or not case.gated]


@pytest.fixture(params=CASES, ids=[case.id for case in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@torch.no_grad()
def outputs(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return model(x)


def test_exposed_attention_gives_timms_outputs(case: Case) -> None:
    model = case.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = outputs(model, case.images())
    teacher = expose_attention(model)
    torch.testing.assert_close(outputs(teacher, case.images()), expected, rtol=1e-5, atol=1e-5)
    assert expected.std() > 0.1, "outputs that tell something"
    assert list(teacher.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert not any(isinstance(module, Attention) for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_student_gives_timms_outputs_while_nothing_is_quantized(case: Case) -> None:
    model = case.model()
    student = build_student(expose_attention(model), quantization())
    set_quantizers(student, enabled=False)
    expected = outputs(model, case.images())
    torch.testing.assert_close(outputs(student, case.images()), expected, rtol=1e-5, atol=1e-5)
    set_quantizers(student, enabled=True)
    assert not torch.allclose(outputs(student, case.images()), expected, atol=1e-2)


def test_every_product_has_its_quantizers(case: Case) -> None:
    student = build_student(expose_attention(case.model()), quantization())
    kinds = [quantizer.kind for quantizer in quantizers_of(student)]
    layers = case.linears + 1  # and the patch embedding
    assert kinds.count(TensorKind.WEIGHT) == layers
    assert kinds.count(TensorKind.ACTIVATION) == layers + 2 * 4
    left = [
        name
        for name, module in student.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d | Attention)
    ]
    assert left == []
    names = [quantizer.name for quantizer in quantizers_of(student)]
    assert len(set(names)) == len(names)
    for name in names:
        assert student.get_submodule(name).name == name
    assert not any(module.training for module in student.modules())


def test_every_quantizer_is_on_the_way(case: Case) -> None:
    """A quantizer that is passed by would leave a product in floating point in the graph."""
    student = build_student(expose_attention(case.model()), quantization())
    seen: set[str] = set()
    for quantizer in quantizers_of(student):
        quantizer.register_forward_hook(lambda module, *_: seen.add(module.name))
    outputs(student, case.images())
    assert seen == {quantizer.name for quantizer in quantizers_of(student)}


def test_taps_see_the_heads(case: Case) -> None:
    teacher = expose_attention(case.model())
    heads = teacher.blocks[0].attn.num_heads
    tokens = 16 + case.prefix
    assert teacher.num_prefix_tokens == case.prefix
    with attention_taps(teacher, "logits") as logits:
        outputs(teacher, case.images())
        outputs(teacher, case.images())
        assert [tuple(tap.shape) for tap in logits] == [(3, heads, tokens, tokens)] * 2
    assert logits == []
    with attention_taps(teacher, "head_outputs") as values:
        outputs(teacher, case.images())
        assert [tuple(tap.shape) for tap in values] == [(3, heads, tokens, 48 // heads)] * 2
    assert not any(module._forward_hooks for module in teacher.modules())


@pytest.mark.skipif(not HAS_GATE, reason="this timm has no gate")
def test_the_gated_case_has_a_gate() -> None:
    (gated,) = (case for case in CASES if case.gated)
    teacher = expose_attention(gated.model())
    assert isinstance(teacher.blocks[0].attn.gate, nn.Linear)


def test_taps_are_products_and_weighted_values() -> None:
    """The logits of the first layer, from the weights alone."""
    model = tiny_vit()
    teacher = expose_attention(model)
    inputs: list[torch.Tensor] = []
    handle = model.blocks[0].attn.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    outputs(model, images(2))
    handle.remove()
    qkv = model.blocks[0].attn.qkv(inputs[0]).detach().double().numpy()
    with attention_taps(teacher, "logits") as taps:
        outputs(teacher, images(2))
        logits = taps[0].double().numpy()
    with attention_taps(teacher, "head_outputs") as taps:
        outputs(teacher, images(2))
        heads = taps[0].double().numpy()
    for head in range(3):
        q, k, v = (
            qkv[1, :, part * 48 + 16 * head : part * 48 + 16 * head + 16] for part in range(3)
        )
        expected = q @ k.T / 16**0.5
        assert abs(logits[1, head] - expected).max() < 1e-4
        weights = torch.from_numpy(expected).softmax(-1).numpy()
        assert abs(heads[1, head] - weights @ v).max() < 1e-4


def test_bits_and_grids() -> None:
    settings = quantization(3, 5, first_layer_bits=7, last_layer_bits=6)
    student = build_student(
        expose_attention(tiny_vit(name="deit_tiny_distilled_patch16_224")), settings
    )
    rows = {quantizer.name: quantizer.describe() for quantizer in quantizers_of(student)}
    expected = {
        "patch_embed.proj.input_quantizer": (7, -64, 63),
        "patch_embed.proj.weight_quantizer": (7, -64, 63),
        "blocks.0.attn.qkv.input_quantizer": (5, -16, 15),
        "blocks.0.attn.qkv.weight_quantizer": (3, -4, 3),
        "blocks.0.attn.query_quantizer": (5, -16, 15),
        "blocks.0.attn.key_quantizer": (5, -16, 15),
        "blocks.0.attn.probability_quantizer": (5, 0, 31),
        "blocks.0.attn.value_quantizer": (5, -16, 15),
        "blocks.1.mlp.fc2.weight_quantizer": (3, -4, 3),
        "head.input_quantizer": (6, -32, 31),
        "head.weight_quantizer": (6, -32, 31),
        "head_dist.weight_quantizer": (6, -32, 31),
    }
    got = {name: (rows[name].bits, rows[name].qmin, rows[name].qmax) for name in expected}
    assert got == expected
    for name, row in rows.items():
        assert (row.axis == 0) == name.endswith("weight_quantizer")


def test_images_are_left_alone_when_the_recipe_says_so() -> None:
    settings = quantization(quantize_images=False, first_layer_bits=None)
    student = build_student(expose_attention(tiny_vit()), settings)
    names = {quantizer.name for quantizer in quantizers_of(student)}
    assert "patch_embed.proj.input_quantizer" not in names
    assert student.get_submodule("patch_embed.proj.weight_quantizer").bits == 4


def test_student_shares_nothing_with_its_teacher() -> None:
    teacher = expose_attention(tiny_vit())
    student = build_student(teacher, quantization())
    own = {parameter.data_ptr() for parameter in teacher.parameters()}
    assert own.isdisjoint(parameter.data_ptr() for parameter in student.parameters())


def test_a_quantized_linear_multiplies_the_quantized_operands() -> None:
    student = build_student(expose_attention(tiny_vit()), quantization())
    layer = student.blocks[0].mlp.fc1
    assert isinstance(layer, QuantizedLinear)
    layer.input_quantizer.scale.data.fill_(0.3)
    layer.weight_quantizer.scale.data.uniform_(0.02, 0.1)
    x = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(1))
    steps = layer.weight_quantizer.scale.detach().double().numpy()
    codes = layer.weight_quantizer.codes(layer.weight).double().numpy() * steps[:, None]
    inputs = layer.input_quantizer.codes(x).double().numpy() * 0.3
    expected = inputs @ codes.T + layer.bias.detach().double().numpy()
    assert abs(layer(x).detach().numpy() - expected).max() < 1e-4


def test_a_quantized_convolution_keeps_its_geometry() -> None:
    generator = torch.Generator().manual_seed(1)
    plain = nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), groups=2)
    from mimiq_calib.quantizers.quantizer import Quantizer
    from mimiq_runtime.grid import Grid

    quantizer = Quantizer("w", TensorKind.WEIGHT, 8, Grid.signed(8), channels=6)
    quantizer.enabled = False
    layer = QuantizedConv2d(plain, nn.Identity(), quantizer)
    x = torch.randn(2, 4, 9, 8, generator=generator)
    torch.testing.assert_close(layer(x), plain(x))


def refused(model: nn.Module, match: str) -> UnsupportedModelError:
    with pytest.raises(UnsupportedModelError, match=match) as caught:
        expose_attention(model.eval())
    return caught.value


def tiny(**arguments: Any) -> nn.Module:
    return tiny_vit(**arguments)


@pytest.mark.parametrize("name", ["resnet18", "swinv2_tiny_window8_256", "mixer_s32_224"])
def test_other_families_are_refused_by_name(name: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=10)
    error = refused(model, "only timm's VisionTransformer")
    assert error.module == type(model).__name__


def test_no_classifier_and_no_pooling_are_refused() -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0)
    refused(model, "num_classes is 0")
    refused(tiny(global_pool=""), "global_pool is ''")


def test_attention_pooling_is_refused() -> None:
    assert refused(tiny(global_pool="map"), "AttentionPoolLatent").module == "attn_pool"


def test_other_attention_is_refused() -> None:
    assert refused(tiny(attn_layer="diff"), "DiffAttention").module == "blocks.0.attn"


def test_shared_keys_are_refused() -> None:
    model = tiny(attn_layer=AttentionRope)
    model.blocks[1].attn.num_kv_groups = 3
    assert refused(model, "fewer heads of keys").module == "blocks.1.attn"


def test_parallel_blocks_are_refused() -> None:
    block = timm.models.vision_transformer.ParallelScalingBlock
    assert refused(tiny(block_fn=block), "ParallelScalingBlock").module == "blocks.0"


def test_gated_mlps_are_refused() -> None:
    assert refused(tiny(mlp_layer=GluMlp), "GluMlp").module == "blocks.0.mlp"


class SharpAttention(Attention):
    """Computes something else under the same parts."""

    def forward(self, x: torch.Tensor, **others: Any) -> torch.Tensor:
        return 2 * super().forward(x, **others)


def test_a_subclass_of_attention_is_refused() -> None:
    error = refused(tiny(attn_layer=SharpAttention), "SharpAttention")
    assert error.module == "blocks.0.attn"


def test_a_known_name_from_elsewhere_is_refused() -> None:
    class LayerNorm(nn.LayerNorm):
        pass

    model = tiny()
    model.blocks[1].norm2 = LayerNorm(48)
    assert refused(model, "LayerNorm").module == "blocks.1.norm2"


def test_an_unknown_part_is_refused() -> None:
    class Squash(nn.Module):
        pass

    model = tiny()
    model.blocks[1].squash = Squash()
    assert refused(model, "Squash").module == "blocks.1.squash"


def test_unknown_parts_inside_attention_are_refused() -> None:
    model = tiny()
    model.blocks[0].attn.rotary = nn.Identity()
    assert refused(model, "unknown to this version: rotary").module == "blocks.0.attn"
    model = tiny()
    model.blocks[1].attn.temperature = nn.Parameter(torch.ones(3))
    assert refused(model, "unknown to this version: temperature").module == "blocks.1.attn"
    model = tiny()
    model.blocks[1].attn.proj = nn.Bilinear(2, 2, 2)
    assert refused(model, "Bilinear").module == "blocks.1.attn.proj"


def test_masks_are_refused() -> None:
    attention = expose_attention(tiny()).blocks[0].attn
    assert isinstance(attention, ExposedAttention)
    x = torch.zeros(1, 17, 48)
    with pytest.raises(UnsupportedModelError, match="masks"):
        attention(x, attn_mask=torch.zeros(17, 17))
    with pytest.raises(UnsupportedModelError, match="masks"):
        attention(x, is_causal=True)


def test_inserting_leaves_parameters_where_they_were() -> None:
    teacher = expose_attention(tiny())
    student = copy.deepcopy(teacher)
    insert_quantizers(student, quantization())
    for name, value in teacher.state_dict().items():
        assert torch.equal(student.state_dict()[name], value)
