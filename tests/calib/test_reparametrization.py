from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from _helpers.calib_cases import (
    PIXEL_SCALE,
    no_advance,
    pixels,
    quantization,
    set_quantizers,
)
from _helpers.tiny_students import UnfusedAttention, images, tiny_swin, tiny_vit
from timm.layers import AttentionRope
from torch import nn

from mimiq_calib.conversion.convert import expose_attention, insert_quantizers
from mimiq_calib.observation import observe_activations, scale_weights
from mimiq_calib.quantizers.learned_step import quantize_to_codes
from mimiq_calib.quantizers.range_search import mse_scale
from mimiq_calib.reparametrization.attention_centring import (
    centre_keys_and_values,
    centring_applies,
)
from mimiq_calib.reparametrization.norm_equalisation import (
    channel_ranges,
    choose_factor,
    equalise_norm,
)
from mimiq_calib.reparametrization.reparametrize import reparametrize
from mimiq_calib.reparametrization.statistics import ChannelStatistics, watch_inputs
from mimiq_calib.reparametrization.value_equalisation import equalise_values
from mimiq_calib.taps import attention_taps
from mimiq_runtime.grid import Grid

GRIDS = {"weight_grid": Grid.signed(4), "activation_grid": Grid.signed(4)}
NONE = {"centre_attention": False, "equalise_channels": False, "skewed_grids": False}


def teacher(**arguments: Any) -> nn.Module:
    return expose_attention(tiny_vit(**arguments))


@torch.no_grad()
def outputs(model: nn.Module) -> torch.Tensor:
    return model(images(4))


def assert_same_function(after: nn.Module, before: torch.Tensor) -> None:
    # 1e-5 of the logits' size, which is about one: a chain of single-precision sums.
    scale = float(before.abs().max())
    torch.testing.assert_close(outputs(after), before, rtol=0.0, atol=1e-5 * scale)


def assert_same_heads(after: nn.Module, before: nn.Module) -> None:
    """What the distillation compares: nothing of the reparametrization is seen in it."""
    for ours, theirs in zip(heads_of(after), heads_of(before), strict=True):
        size = float(theirs.abs().max())
        torch.testing.assert_close(centred(ours), centred(theirs), rtol=0.0, atol=1e-5 * size)


def heads_of(model: nn.Module) -> list[torch.Tensor]:
    with attention_taps(model, "head_outputs") as taps:
        outputs(model)
        return list(taps)


def centred(heads: torch.Tensor) -> torch.Tensor:
    """Value centring moves each channel by one number, and the loss looks at none."""
    return heads - heads.mean(dim=2, keepdim=True)


def statistics_of(x: torch.Tensor) -> ChannelStatistics:
    statistics = ChannelStatistics(rows_per_batch=10_000)
    statistics.update(x)
    return statistics


def quantized(values: torch.Tensor, grid: Grid, *, per_row: bool = False) -> torch.Tensor:
    flat = values.detach() if per_row else values.detach().reshape(1, -1)
    scale = mse_scale(flat, grid)[:, None]
    return (quantize_to_codes(flat, scale, grid) * scale).view_as(values)


def squared_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean())


class TestStatistics:
    def test_mean_is_over_everything_and_rows_are_a_sample(self) -> None:
        statistics = ChannelStatistics(rows_per_batch=5)
        first = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
        second = 5 + torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(1))
        statistics.update(first)
        statistics.update(second)
        everything = torch.cat([first.reshape(-1, 3), second.reshape(-1, 3)])
        torch.testing.assert_close(statistics.mean(), everything.mean(dim=0))
        rows = statistics.rows()
        assert len(rows) <= 2 * 2 * 5
        assert all((everything == row).all(dim=1).any() for row in rows)

    def test_nothing_seen(self) -> None:
        with pytest.raises(RuntimeError, match="no batch"):
            ChannelStatistics().mean()

    def test_watched_until_the_block_ends(self) -> None:
        model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
        x = torch.randn(5, 3)
        with watch_inputs({"second": model[2], "first": model[0]}) as statistics:
            model(x)
        torch.testing.assert_close(statistics["first"].rows(), x)
        torch.testing.assert_close(statistics["second"].rows(), model[:2](x).detach())
        model(x)
        assert len(statistics["first"].rows()) == 5
        assert not any(module._forward_pre_hooks for module in model)


class TestCentring:
    def offset_keys_and_values(self, model: nn.Module, offset: float) -> nn.Module:
        with torch.no_grad():
            for block in model.blocks:
                block.attn.qkv.bias[48:] += offset * torch.linspace(-1, 1, 96)
        return model

    def test_keeps_the_function(self) -> None:
        model = self.offset_keys_and_values(teacher(), 3.0)
        before = outputs(model)
        with watch_inputs({"x": model.blocks[0].attn.qkv}) as statistics:
            outputs(model)
        bias = model.blocks[0].attn.qkv.bias.clone()
        centre_keys_and_values(model.blocks[0].attn, statistics["x"])
        assert_same_function(model, before)
        changed = model.blocks[0].attn.qkv.bias - bias
        assert not changed[:48].any(), "queries stay"
        assert (changed[48:].abs() > 0.01).float().mean() > 0.9

    def test_mean_key_and_value_are_zero_afterwards(self) -> None:
        model = self.offset_keys_and_values(teacher(), 3.0)
        attention = model.blocks[0].attn
        with watch_inputs({"x": attention.qkv}) as statistics:
            outputs(model)
        seen: list[torch.Tensor] = []
        handle = attention.qkv.register_forward_hook(lambda _m, _i, output: seen.append(output))
        outputs(model)
        assert seen[0][..., 48:].mean(dim=(0, 1)).abs().max() > 1
        centre_keys_and_values(attention, statistics["x"])
        outputs(model)
        handle.remove()
        assert seen[-1][..., 48:].mean(dim=(0, 1)).abs().max() < 1e-4

    def test_lowers_the_error_of_offset_keys_and_values(self) -> None:
        def error(centre: bool) -> float:
            model = self.offset_keys_and_values(teacher(), 10.0)
            before = outputs(model)
            settings = quantization(8, 5, **NONE | {"centre_attention": centre})
            return squared_error(outputs(calibrated(model, settings)), before)

        assert error(True) < 0.5 * error(False)

    @pytest.mark.parametrize(
        "arguments",
        [{"qk_norm": True}, {"scale_attn_norm": True}, {"qkv_bias": False}, {"proj_bias": False}],
        ids=str,
    )
    def test_only_where_it_is_exact(self, arguments: dict[str, Any]) -> None:
        assert not centring_applies(teacher(**arguments).blocks[0].attn)
        assert centring_applies(teacher().blocks[0].attn)

    def test_not_with_a_gate(self) -> None:
        attention = teacher().blocks[0].attn
        attention.gate = nn.Linear(48, 48)
        assert not centring_applies(attention)


class TestEqualisation:
    def parts(self) -> tuple[nn.LayerNorm, list[nn.Linear], torch.Tensor]:
        torch.manual_seed(1)
        norm, layers = nn.LayerNorm(12), [nn.Linear(12, 7), nn.Linear(12, 5)]
        norm.weight.data = torch.full((12,), 0.3)
        norm.weight.data[3] = 20.0  # one channel of large range
        norm.bias.data = torch.linspace(-2, 2, 12)
        return norm, layers, torch.randn(300, 12)

    @torch.no_grad()
    def test_keeps_the_function(self) -> None:
        norm, layers, x = self.parts()
        before = [layer(norm(x)) for layer in layers]
        strength = equalise_norm(norm, layers, statistics_of(norm(x)), **GRIDS)
        assert 0 <= strength <= 1
        for layer, expected in zip(layers, before, strict=True):
            torch.testing.assert_close(layer(norm(x)), expected, rtol=1e-5, atol=2e-5)

    @torch.no_grad()
    def test_lowers_the_error_where_one_channel_is_large(self) -> None:
        def error(norm: nn.LayerNorm, layers: list[nn.Linear], x: torch.Tensor) -> float:
            inputs = quantized(norm(x), Grid.signed(4))
            return sum(
                squared_error(
                    inputs @ quantized(layer.weight, Grid.signed(4), per_row=True).T + layer.bias,
                    layer(norm(x)),
                )
                for layer in layers
            )

        norm, layers, x = self.parts()
        before = error(norm, layers, x)
        strength = equalise_norm(norm, layers, statistics_of(norm(x)), **GRIDS)
        assert strength > 0
        assert error(norm, layers, x) < 0.5 * before

    @torch.no_grad()
    def test_shift_centres_each_channel(self) -> None:
        norm, layers, x = self.parts()
        equalise_norm(norm, layers, statistics_of(norm(x)), **GRIDS)
        y = norm(x)
        middle = (y.quantile(0.001, dim=0) + y.quantile(0.999, dim=0)) / 2
        assert (middle.abs() < 1e-3 * y.abs().amax(dim=0)).all()

    @torch.no_grad()
    def test_constant_channels_stay_finite(self) -> None:
        norm, layers, x = self.parts()
        norm.weight.data[5] = 0.0
        before = [layer(norm(x)) for layer in layers]
        equalise_norm(norm, layers, statistics_of(norm(x)), **GRIDS)
        assert torch.isfinite(norm.bias).all()
        for layer, expected in zip(layers, before, strict=True):
            torch.testing.assert_close(layer(norm(x)), expected, rtol=1e-4, atol=2e-4)


class TestChannelRanges:
    def test_middle_and_half_without_the_tails(self) -> None:
        rows = torch.rand(20_000, 3, generator=torch.Generator().manual_seed(0))
        rows = rows * torch.tensor([2.0, 10.0, 0.0]) + torch.tensor([1.0, -5.0, 4.0])
        rows[0] = 1e3  # fewer than a thousandth
        middle, half_range = channel_ranges(rows)
        torch.testing.assert_close(middle, torch.tensor([2.0, 0.0, 4.0]), rtol=0.0, atol=0.02)
        torch.testing.assert_close(half_range[:2], torch.tensor([1.0, 5.0]), rtol=0.01, atol=0.0)
        assert 0 < half_range[2] < 0.02, "a constant channel is not infinitely fine"


class TestChosenFactor:
    def test_even_channels_need_no_factor(self) -> None:
        generator = torch.Generator().manual_seed(0)
        rows, weight = (torch.randn(n, 12, generator=generator) for n in (300, 7))
        strength, factor = choose_factor(rows, torch.full((12,), 3.0), weight, **GRIDS)
        assert strength == 0
        torch.testing.assert_close(factor, torch.ones(12))

    def test_large_channels_are_divided_by_more_and_the_mean_factor_is_one(self) -> None:
        generator = torch.Generator().manual_seed(0)
        rows, weight = (torch.randn(n, 12, generator=generator) for n in (300, 7))
        rows[:, 3] *= 60
        strength, factor = choose_factor(rows, channel_ranges(rows)[1], weight, **GRIDS)
        assert strength > 0
        assert int(factor.argmax()) == 3
        assert float(factor.log().mean()) == pytest.approx(0.0, abs=1e-5)


class TestValueEqualisation:
    def uneven_values(self, **arguments: Any) -> nn.Module:
        """Three channels of the values of the first block are 30 times as large."""
        model = teacher(**arguments)
        qkv = model.blocks[0].attn.qkv
        with torch.no_grad():
            for channel in (3, 17, 40):
                qkv.weight[96 + channel] *= 30
        return model

    def projected(self, model: nn.Module) -> ChannelStatistics:
        with watch_inputs({"x": model.blocks[0].attn.proj}) as statistics:
            outputs(model)
        return statistics["x"]

    @pytest.mark.parametrize(
        "arguments", [{}, {"qkv_bias": False}, {"proj_bias": False}, {"qk_norm": True}], ids=str
    )
    def test_keeps_the_function_and_evens_out_the_channels(self, arguments: dict[str, Any]) -> None:
        model = self.uneven_values(**arguments)
        before, statistics = outputs(model), self.projected(model)
        attention = model.blocks[0].attn
        queries_and_keys = attention.qkv.weight[:96].clone()
        strength = equalise_values(attention, statistics, **GRIDS)
        assert strength is not None
        assert strength > 0
        assert_same_function(model, before)
        assert torch.equal(attention.qkv.weight[:96], queries_and_keys)

        def spread(rows: torch.Tensor) -> float:
            _, half_range = channel_ranges(rows)
            return float(half_range.max() / half_range.median())

        uneven, even = spread(statistics.rows()), spread(self.projected(model).rows())
        # Every ratio of ranges is raised to the power of what is left of the strength.
        assert uneven > 10
        assert even == pytest.approx(uneven ** (1 - strength), rel=0.01)

    def test_not_behind_a_normalisation(self) -> None:
        model = self.uneven_values(scale_attn_norm=True)
        before = copy.deepcopy(model.state_dict())
        assert equalise_values(model.blocks[0].attn, self.projected(model), **GRIDS) is None
        assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())

    def test_heads_are_read_in_the_units_of_the_original_model(self) -> None:
        model = self.uneven_values()
        statistics, before = self.projected(model), heads_of(model)
        equalise_values(model.blocks[0].attn, statistics, **GRIDS)
        assert float(model.blocks[0].attn.head_unit.max()) > 2
        for now, then in zip(heads_of(model), before, strict=True):
            torch.testing.assert_close(now, then, rtol=1e-4, atol=1e-5)


def calibrated(model: nn.Module, settings: Any) -> nn.Module:
    """All of an observation, as ``mimiq_deploy.calibration`` does it."""
    student, pictures = copy.deepcopy(model), pixels(8)
    reparametrize(student, settings, pictures, PIXEL_SCALE, batch_size=4, advance=no_advance)
    insert_quantizers(student, settings)
    scale_weights(student, settings)
    observe_activations(student, settings, pictures, PIXEL_SCALE, batch_size=4, advance=no_advance)
    return student


VARIANTS = [
    {},
    {"qk_norm": True},
    {"qkv_bias": False},
    {"proj_bias": False},
    {"scale_attn_norm": True, "scale_mlp_norm": True},
    {"class_token": False, "global_pool": "avg"},
    {"name": "deit_tiny_distilled_patch16_224"},
    {"init_values": 0.3, "reg_tokens": 2},
]


@pytest.mark.parametrize("arguments", VARIANTS, ids=str)
@pytest.mark.parametrize("chosen", [*NONE, "all"])
def test_reparametrizing_keeps_the_function(chosen: str, arguments: dict[str, Any]) -> None:
    model = teacher(**dict(arguments))
    before = outputs(model)
    student = calibrated(
        model, quantization(4, 4, **{name: chosen in (name, "all") for name in NONE})
    )
    set_quantizers(student, enabled=False)
    assert_same_function(student, before)
    assert_same_heads(student, model)


def test_everything_is_changed_where_it_applies() -> None:
    model = teacher()
    student = calibrated(model, quantization(4, 4))
    before, after = model.state_dict(), student.state_dict()
    for part in (
        "norm1.weight",
        "norm1.bias",
        "norm2.weight",
        "attn.qkv.bias",
        "attn.proj.bias",
        "mlp.fc1.weight",
        "mlp.fc1.bias",
    ):
        for block in (0, 1):
            name = f"blocks.{block}.{part}"
            assert not torch.equal(before[name], after[name]), name
    plain = calibrated(model, quantization(4, 4, **NONE)).state_dict()
    assert all(torch.equal(plain[name], value) for name, value in before.items())


def test_all_together_lower_the_error_of_a_skewed_model() -> None:
    model = teacher()
    with torch.no_grad():
        for block in model.blocks:
            block.norm1.weight[5] *= 15
            block.norm2.weight[7] *= 15
            block.attn.qkv.bias[48:] += 4 * torch.linspace(-1, 1, 96)
    before = outputs(model)
    errors = {
        name: squared_error(outputs(calibrated(model, quantization(6, 6, **settings))), before)
        for name, settings in {"with": {}, "without": NONE}.items()
    }
    assert errors["with"] < 0.7 * errors["without"], errors


def test_progress_counts_every_picture() -> None:
    model, counted = teacher(), []
    reparametrize(
        model,
        quantization(),
        pixels(7),
        PIXEL_SCALE,
        batch_size=3,
        advance=lambda steps, _note: counted.append(steps),
    )
    assert counted == [3, 3, 1]


SWINS = [
    {},
    {"window_size": 3},
    {"qkv_bias": False},
    {"always_partition": True, "patch_size": 2},
]


@pytest.mark.parametrize("arguments", SWINS, ids=["plain", "padded", "no-qkv-bias", "partition"])
@pytest.mark.parametrize("chosen", ["centre_attention", "all"])
def test_reparametrizing_keeps_the_function_of_swin(chosen: str, arguments: dict[str, Any]) -> None:
    model = uneven_swin(**arguments)
    before = outputs(model)
    student = calibrated(
        model, quantization(4, 4, **{name: chosen in (name, "all") for name in NONE})
    )
    set_quantizers(student, enabled=False)
    assert_same_function(student, before)
    assert_same_heads(student, model)


def uneven_swin(**arguments: Any) -> nn.Module:
    """Large channels behind every norm in front of a Linear, so that no factor is one."""
    model = expose_attention(tiny_swin(**arguments))
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.LayerNorm) and name.startswith("layers"):
                module.weight[5] *= 8
                module.bias[7] += 2
    return model


class TestSwinFolds:
    def folded(self, **arguments: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        model = uneven_swin(**arguments)
        settings = quantization(4, 4, **NONE | {"equalise_channels": True})
        return model.state_dict(), calibrated(model, settings).state_dict()

    def is_scaled_only(
        self, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor], norm: str
    ) -> bool:
        factor = before[f"{norm}.weight"] / after[f"{norm}.weight"]
        assert factor.max() > 1.3 * factor.min(), "the channels are evened out"
        return torch.allclose(after[f"{norm}.bias"] * factor, before[f"{norm}.bias"], rtol=1e-4)

    def test_every_norm_before_a_linear_is_folded_and_no_other(self) -> None:
        before, after = self.folded()
        changed = {
            name.removesuffix(".weight")
            for name in before
            if "norm" in name and name.endswith(".weight")
            if not torch.equal(before[name], after[name])
        }
        blocks = {f"layers.{stage}.blocks.{block}" for stage in (0, 1) for block in (0, 1)}
        expected = {f"{block}.{norm}" for block in blocks for norm in ("norm1", "norm2")}
        # The embedding's norm feeds the residual stream; the last one the pooling.
        assert changed == expected | {"layers.1.downsample.norm"}

    def test_the_reduction_has_no_bias_so_its_norm_is_not_shifted(self) -> None:
        before, after = self.folded()
        assert self.is_scaled_only(before, after, "layers.1.downsample.norm")
        assert not self.is_scaled_only(before, after, "layers.0.blocks.0.norm1")
        assert not self.is_scaled_only(before, after, "layers.0.blocks.0.norm2")
        assert "layers.1.downsample.reduction.bias" not in after

    def test_padded_windows_are_not_shifted(self) -> None:
        before, after = self.folded(window_size=3)
        assert self.is_scaled_only(before, after, "layers.0.blocks.0.norm1")
        assert not self.is_scaled_only(before, after, "layers.0.blocks.0.norm2")


def test_a_norm_without_bias_is_scaled() -> None:
    torch.manual_seed(1)
    norm, layer = nn.LayerNorm(12, bias=False), nn.Linear(12, 7, bias=False)
    norm.weight.data[3] = 20.0
    x = torch.randn(300, 12)
    with torch.no_grad():
        before = layer(norm(x))
        strength = equalise_norm(norm, [layer], statistics_of(norm(x)), **GRIDS, shift=False)
        assert strength > 0
        assert norm.weight[3] < 19
        torch.testing.assert_close(layer(norm(x)), before, rtol=1e-5, atol=2e-5)


class TestUnfused:
    """Queries, keys and values from layers of their own, with the weights of a fused one."""

    def twins(self) -> tuple[nn.Module, nn.Module]:
        fused, unfused = (tiny_vit(attn_layer=layer) for layer in (AttentionRope, UnfusedAttention))
        state = fused.state_dict()
        for name in [name for name in state if ".qkv." in name]:
            for part, rows in zip("qkv", state.pop(name).chunk(3), strict=True):
                state[name.replace("qkv", f"{part}_proj")] = rows.clone()
        unfused.load_state_dict(state)
        for module in unfused.modules():
            if type(module) is UnfusedAttention:
                module.__class__ = AttentionRope
        return expose_attention(fused), expose_attention(unfused)

    def test_the_same_is_folded(self) -> None:
        settings = quantization(4, 4, skewed_grids=False)
        fused, unfused = (calibrated(model, settings) for model in self.twins())
        for block in (0, 1):
            qkv = fused.blocks[block].attn.qkv
            for index, part in enumerate("qkv"):
                layer = unfused.blocks[block].attn.get_submodule(f"{part}_proj")
                rows = slice(48 * index, 48 * index + 48)
                torch.testing.assert_close(layer.weight, qkv.weight[rows], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(layer.bias, qkv.bias[rows], rtol=1e-4, atol=1e-5)
            for name in ("norm1.weight", "norm1.bias", "attn.proj.bias", "attn.proj.weight"):
                ours = unfused.get_parameter(f"blocks.{block}.{name}")
                theirs = fused.get_parameter(f"blocks.{block}.{name}")
                torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

    def test_keeps_the_function(self) -> None:
        model = self.twins()[1]
        before = outputs(model)
        student = calibrated(model, quantization(4, 4))
        set_quantizers(student, enabled=False)
        assert_same_function(student, before)
