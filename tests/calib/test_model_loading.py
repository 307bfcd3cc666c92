from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mimiq_calib.model_loading import (
    create_model,
    load_checkpoint_file,
    load_weights,
    preprocessing_of,
)
from mimiq_runtime.errors import CheckpointError, InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

NAME = "vit_tiny_patch16_224"
TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}


def tiny(**others: Any) -> nn.Module:
    return create_model(NAME, num_classes=5, arguments=TINY | others, pretrained=False)


@pytest.fixture
def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(value.shape, generator=generator)
        for name, value in tiny().state_dict().items()
    }


def assert_loads(path: Path, weights: dict[str, Tensor]) -> None:
    model = tiny()
    load_weights(model, load_checkpoint_file(path), origin="a test")
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())


class TestCreating:
    def test_in_inference_mode_with_the_arguments(self) -> None:
        model = tiny()
        assert not model.training
        assert model.num_classes == 5
        assert len(model.blocks) == 1

    def test_timms_number_of_classes(self) -> None:
        model = create_model(NAME, num_classes=None, arguments=TINY, pretrained=False)
        assert model.num_classes == 1000

    @pytest.mark.parametrize("name", ["vit_huge_nonsense", "", "no such model", "../../etc"])
    def test_unknown_names(self, name: str) -> None:
        with pytest.raises(InvalidInputError, match="no model named"):
            create_model(name, num_classes=5, arguments={}, pretrained=False)

    @pytest.mark.parametrize(
        ("typed", "first"),
        [
            ("deit_tiny_patch16", "deit_tiny_patch16_224"),
            ("deit_tinyy", "deit_tiny_distilled_patch16_224, deit_tiny_patch16_224"),
            ("deit_tiny_patch16_244", "deit_tiny_patch16_224"),
            ("deit-tiny-patch16-224.fb_in1k", "deit_tiny_patch16_224"),
            ("swin_tny_patch4_window7_224", "swin_tiny_patch4_window7_224"),
            ("xcit", "xcit_"),
        ],
    )
    def test_a_slip_of_the_pen_gets_similar_names(self, typed: str, first: str) -> None:
        with pytest.raises(InvalidInputError, match=f"similar names are {first}"):
            create_model(typed, num_classes=5, arguments={}, pretrained=False)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"nonsense": 1},
            {"patch_size": 0},
            {"num_heads": 0},
            {"num_heads": 5},
            {"embed_dim": "wide"},
            {"depth": -1},
            {"depth": 1.5},
            {"act_layer": "nonsense"},
            {"global_pool": "nonsense"},
            {"img_size": [1, 2, 3]},
            {"block_fn": 3},
            {"pretrained": True},
            {"checkpoint_path": "weights.pth"},
            {"pretrained_cfg": {"file": "weights.pth"}},
            {"pretrained_cfg_overlay": {"url": "http://127.0.0.1/w"}},
            {"cache_dir": "elsewhere"},
            {"features_only": True},
            {"out_indices": [0]},
            {"pruned": True},
            {"scriptable": True},
            {"exportable": True},
            {"device": "meta"},
            {"dtype": "float16"},
        ],
        ids=str,
    )
    def test_arguments_that_timm_cannot_use(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError, match="cannot create"):
            create_model(NAME, num_classes=5, arguments=TINY | wrong, pretrained=False)

    def test_every_model_that_can_be_converted_takes_its_own_arguments(self) -> None:
        """Against timm's registry: what its models are built with is not refused."""
        import timm

        for name in ("vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"):
            others = {"reg_tokens": 1, "norm_layer": "layernorm", "drop_path_rate": 0.1}
            create_model(name, num_classes=2, arguments=TINY | others, pretrained=False)
        sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 1], "window_size": 4}
        swin = create_model(
            "swin_tiny_patch4_window7_224",
            num_classes=2,
            arguments={**sizes, "img_size": 32},
            pretrained=False,
        )
        assert isinstance(swin, timm.models.SwinTransformer)

    @pytest.mark.parametrize(
        "huge",
        [{"img_size": 10**9}, {"depth": float("nan")}, {"img_size": [float("inf")]}],
        ids=str,
    )
    def test_numbers_beyond_any_model(self, huge: dict[str, Any]) -> None:
        with pytest.raises(InvalidInputError, match="may be at most"):
            create_model(NAME, num_classes=5, arguments=TINY | huge, pretrained=False)

    def test_a_number_that_python_does_not_write(self) -> None:
        with pytest.raises(InvalidInputError, match="thousands of digits"):
            create_model(
                NAME, num_classes=5, arguments=TINY | {"depth": 16**5000}, pretrained=False
            )

    def test_pretrained_weights_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import timm

        original = timm.create_model

        def offline(name: str, *, pretrained: bool, **others: Any) -> nn.Module:
            if pretrained:
                raise ConnectionError("no route to host")
            return original(name, pretrained=False, **others)

        monkeypatch.setattr(timm, "create_model", offline)
        with pytest.raises(CheckpointError, match=r"no route to host.*--checkpoint"):
            create_model(NAME, num_classes=None, arguments=TINY, pretrained=True)


class TestFiles:
    def test_safetensors(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        save_file(weights, tmp_path / "w.safetensors")
        assert_loads(tmp_path / "w.safetensors", weights)

    @pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".tar", ".PTH"])
    def test_torch_files(self, tmp_path: Path, weights: dict[str, Tensor], suffix: str) -> None:
        path = tmp_path / f"w{suffix}"
        torch.save(weights, path)
        assert_loads(path, weights)

    @pytest.mark.parametrize(
        "wrapper", ["model", "state_dict", "model_ema", "state_dict_ema", "module"]
    )
    def test_wrapped(self, tmp_path: Path, weights: dict[str, Tensor], wrapper: str) -> None:
        torch.save({"epoch": 3, "arch": "vit", wrapper: weights}, tmp_path / "w.pth")
        assert_loads(tmp_path / "w.pth", weights)

    def test_averaged_weights_come_first(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        raw = {name: value + 1 for name, value in weights.items()}
        torch.save({"state_dict": raw, "state_dict_ema": weights}, tmp_path / "w.pth")
        assert_loads(tmp_path / "w.pth", weights)

    def test_data_parallel(self, tmp_path: Path, weights: dict[str, Tensor]) -> None:
        wrapped = {f"module.{name}": value for name, value in weights.items()}
        torch.save({"model": wrapped}, tmp_path / "w.pth")
        assert_loads(tmp_path / "w.pth", weights)

    def test_half_precision_is_loaded_as_single(self, weights: dict[str, Tensor]) -> None:
        model = tiny()
        load_weights(model, {n: w.half() for n, w in weights.items()}, origin="a test")
        for name, value in model.state_dict().items():
            assert value.dtype == torch.float32
            assert torch.equal(value, weights[name].half().float())

    @pytest.mark.parametrize("keep", [0, 4, 100, -100])
    @pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
    def test_truncated(
        self, tmp_path: Path, weights: dict[str, Tensor], suffix: str, keep: int
    ) -> None:
        path = tmp_path / f"w{suffix}"
        if suffix == ".pth":
            torch.save(weights, path)
        else:
            save_file(weights, path)
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(CheckpointError, match="safetensors"):
            load_checkpoint_file(path)

    @pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
    def test_something_else(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"\x00\xff" * 500)
        with pytest.raises(CheckpointError):
            load_checkpoint_file(tmp_path / name)

    def test_code_in_a_pickle_is_not_run(self, tmp_path: Path) -> None:
        witness = tmp_path / "witness"

        class Malicious:
            def __reduce__(self) -> tuple[Any, tuple[str]]:
                return os.mkdir, (str(witness),)

        torch.save({"model": Malicious()}, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="tensors alone"):
            load_checkpoint_file(tmp_path / "w.pth")
        assert not witness.exists()

    def test_a_whole_module_is_not_loaded(self, tmp_path: Path) -> None:
        torch.save(nn.Linear(2, 2), tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="tensors alone"):
            load_checkpoint_file(tmp_path / "w.pth")

    @pytest.mark.parametrize(
        "content",
        [{}, [], 3, {"epoch": 3}, {"model": {}}, {"model": {"a": 1}}, torch.ones(2)],
        ids=str,
    )
    def test_no_state_dict(self, tmp_path: Path, content: Any) -> None:
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="no state dict"):
            load_checkpoint_file(tmp_path / "w.pth")

    def test_missing_files_folders_and_other_endings(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="not a file"):
            load_checkpoint_file(tmp_path / "w.pth")
        with pytest.raises(CheckpointError, match="not a file"):
            load_checkpoint_file(tmp_path)
        (tmp_path / "w.onnx").write_bytes(b"")
        with pytest.raises(CheckpointError, match=r"must be .safetensors"):
            load_checkpoint_file(tmp_path / "w.onnx")


class TestWeights:
    def test_every_fault_at_once(self, weights: dict[str, Tensor]) -> None:
        del weights["cls_token"]
        weights["extra.weight"] = torch.zeros(2)
        weights["head.bias"] = torch.zeros(7)
        with pytest.raises(CheckpointError) as caught:
            load_weights(tiny(), weights, origin="w.pth")
        message = str(caught.value)
        assert "1 missing (cls_token)" in message
        assert "1 unexpected (extra.weight)" in message
        assert "head.bias is (7,) and should be (5,)" in message
        assert "w.pth" in message

    def test_long_lists_are_cut(self) -> None:
        with pytest.raises(CheckpointError, match=r"missing \([^,]+, [^,]+, [^,]+, \.\.\.\)"):
            load_weights(tiny(), {}, origin="w.pth")

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    def test_not_finite(self, weights: dict[str, Tensor], value: float) -> None:
        weights["blocks.0.mlp.fc1.weight"][3, 4] = value
        model = tiny()
        before = model.state_dict()["cls_token"].clone()
        with pytest.raises(CheckpointError, match=r"not finite: blocks\.0\.mlp\.fc1\.weight"):
            load_weights(model, weights, origin="w.pth")
        assert torch.equal(model.state_dict()["cls_token"], before), "nothing was loaded"


class TestPreprocessing:
    def test_timms_configuration(self) -> None:
        got = preprocessing_of(tiny(), {})
        assert got.input_size == (3, 32, 32)
        assert got.mean == got.std == (0.5, 0.5, 0.5)
        assert got.interpolation == "bicubic"
        deit = create_model("deit_tiny_patch16_224", num_classes=5, arguments={}, pretrained=False)
        got = preprocessing_of(deit, {})
        assert got.mean == (0.485, 0.456, 0.406)
        assert got.std == (0.229, 0.224, 0.225)
        assert (got.input_size, got.crop_pct) == ((3, 224, 224), 0.9)

    def test_overrides(self) -> None:
        got = preprocessing_of(
            tiny(), {"mean": [0.1, 0.2, 0.3], "crop_pct": 1.0, "interpolation": "bilinear"}
        )
        assert got.mean == (0.1, 0.2, 0.3)
        assert (got.crop_pct, got.interpolation) == (1.0, "bilinear")
        assert got.std == (0.5, 0.5, 0.5)

    def test_one_channel_gets_the_mean_of_three(self) -> None:
        deit = create_model(
            "deit_tiny_patch16_224",
            num_classes=5,
            arguments=TINY | {"in_chans": 1},
            pretrained=False,
        )
        got = preprocessing_of(deit, {})
        assert got.input_size == (1, 32, 32)
        assert got.mean == pytest.approx((sum((0.485, 0.456, 0.406)) / 3,))
        assert got.std == pytest.approx((sum((0.229, 0.224, 0.225)) / 3,))

    def test_sizes_that_are_not_square(self) -> None:
        assert preprocessing_of(tiny(img_size=[32, 48]), {}).input_size == (3, 32, 48)

    @pytest.mark.parametrize(
        ("overrides", "match"),
        [
            ({"nonsense": 1}, "nonsense: unknown key"),
            ({"interpolation": "random"}, "interpolation"),
            ({"crop_pct": 0}, "crop_pct"),
            ({"mean": [0.5]}, "3 input channels.*1 means"),
            ({"std": [0.5, 0.5, 0.5, 0.5]}, "4 standard deviations"),
            ({"std": [0.5, 0.0, 0.5]}, "positive"),
            ({"input_size": [3, 64, 64]}, "inputs of .3, 32, 32."),
            ({"input_size": [1, 32, 32], "mean": [0.5], "std": [0.5]}, "inputs of .3, 32, 32."),
            ({"input_size": [32, 32]}, "input_size"),
        ],
        ids=str,
    )
    def test_faults(self, overrides: dict[str, Any], match: str) -> None:
        with pytest.raises(InvalidInputError, match=match):
            preprocessing_of(tiny(), overrides)

    def test_all_faults_at_once(self) -> None:
        with pytest.raises(InvalidInputError, match=r"crop_pct.*nonsense|nonsense.*crop_pct"):
            preprocessing_of(tiny(), {"nonsense": 1, "crop_pct": 7})

    def test_dynamic_sizes_may_differ_from_the_models_own(self) -> None:
        model = tiny(dynamic_img_size=True)
        assert preprocessing_of(model, {"input_size": [3, 64, 64]}).input_size == (3, 64, 64)
