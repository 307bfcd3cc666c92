"""Checkpoints as others name them, written from timm's own by the inverse of the renaming."""

from __future__ import annotations

import sys

import pytest
import torch
from _helpers.tiny_students import images, tiny_swin, tiny_vit
from torch import Tensor, nn

from mimiq_calib.checkpoint_names import todays_names
from mimiq_calib.model_loading import load_weights
from mimiq_runtime.errors import CheckpointError


def swin(**arguments: object) -> nn.Module:
    """Three stages, so that two mergings change places."""
    architecture = {"depths": (2, 1, 1), "num_heads": (2, 3, 4)}
    return tiny_swin(**architecture | arguments)


def released_swin() -> dict[str, Tensor]:
    """Names of the original release: mergings a stage earlier, buffers stored, one head."""
    model = swin()
    released = {}
    for name, value in model.state_dict().items():
        before = name.replace("layers.1.downsample", "layers.0.downsample")
        before = before.replace("layers.2.downsample", "layers.1.downsample")
        released[before.replace("head.fc.", "head.")] = value
    released.update(model.named_buffers())
    assert {"layers.0.blocks.1.attn_mask", "layers.0.downsample.norm.weight"} < released.keys()
    return released


def released_deit3() -> dict[str, Tensor]:
    state = tiny_vit(name="deit3_small_patch16_224").state_dict()
    return {
        name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): value
        for name, value in state.items()
    }


def blank(model: nn.Module) -> nn.Module:
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def same(model: nn.Module, original: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(model(images(2)), original(images(2)))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_original_release_of_swin(prefix: str) -> None:
    weights = {prefix + name: value for name, value in released_swin().items()}
    model = blank(swin())
    with pytest.raises(CheckpointError, match="unexpected"):
        load_weights(model, weights, origin="swin.pth")
    load_weights(model, todays_names(model, weights), origin="swin.pth")
    assert same(model, swin())


def test_the_original_release_of_deit3() -> None:
    model = blank(tiny_vit(name="deit3_small_patch16_224"))
    weights = released_deit3()
    assert "blocks.1.gamma_2" in weights
    load_weights(model, todays_names(model, weights), origin="deit3.pth")
    assert same(model, tiny_vit(name="deit3_small_patch16_224"))


def test_an_older_timm_stored_what_it_computes() -> None:
    weights = dict(swin().state_dict()) | dict(swin().named_buffers())
    model = blank(swin())
    load_weights(model, todays_names(model, weights), origin="swin.safetensors")
    assert same(model, swin())


def test_timm_renames_the_same() -> None:
    """Its own filter for downloads, which would also resize what does not fit."""
    for model, weights in (
        (swin(), released_swin()),
        (tiny_vit(name="deit3_small_patch16_224"), released_deit3()),
    ):
        convert = sys.modules[type(model).__module__].checkpoint_filter_fn
        options = {"adapt_layer_scale": True} if "cls_token" in weights else {}
        expected = convert(dict(weights), model, **options)
        got = todays_names(model, weights)
        assert got.keys() == expected.keys() == model.state_dict().keys()
        assert all(torch.equal(got[name], value) for name, value in expected.items())


@pytest.mark.parametrize("build", [swin, tiny_vit])
def test_todays_names_stay(build: object) -> None:
    model = build()  # type: ignore[operator]
    state = model.state_dict()
    got = todays_names(model, state)
    assert list(got) == list(state)
    assert all(got[name] is state[name] for name in state)


def test_what_fits_no_rule_is_reported_under_its_own_name() -> None:
    weights = released_swin() | {"layers.7.gamma_9": torch.ones(1)}
    weights["layers.0.blocks.0.attn.qkv.bias"] = torch.ones(5)
    model = swin()
    with pytest.raises(CheckpointError) as caught:
        load_weights(model, todays_names(model, weights), origin="w.pth")
    message = str(caught.value)
    assert "1 unexpected (layers.7.gamma_9)" in message
    assert "layers.0.blocks.0.attn.qkv.bias is (5,)" in message
