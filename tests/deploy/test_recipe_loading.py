from __future__ import annotations

from datetime import date
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from mimiq_calib.recipe import FAITHFUL, FIRST_LAYER, LAST_LAYERS, ImageSource, Recipe
from mimiq_deploy.recipe_loading import (
    load_recipe,
    overrides_of,
    parse_bits,
    parse_setting,
    shipped_recipes,
)
from mimiq_deploy.strict_yaml import LARGEST_FILE
from mimiq_runtime.errors import InvalidInputError, RecipeError

if TYPE_CHECKING:
    from pathlib import Path

SMALL = """
name: small
quantization: {weight_bits: 4, activation_bits: 8}
synthesis: {num_images: 4}
"""


def written(folder: Path, text: str) -> str:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def faults_of(source: str, *settings: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(source, settings=settings)
    return caught.value.faults


class TestShipped:
    def test_the_usual_ones_are_there(self) -> None:
        assert {"balanced", "paper", "quick"} <= set(shipped_recipes())

    @pytest.mark.parametrize("name", shipped_recipes())
    def test_validates_under_its_own_name(self, name: str) -> None:
        recipe = load_recipe(name)
        assert recipe.name == name
        assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe, "as in run.json"

    def test_paper_is_method_md(self) -> None:
        recipe = load_recipe("paper")
        made, trained, bits = recipe.synthesis, recipe.distillation, recipe.quantization
        assert (made.num_images, made.batch_size, made.iterations) == (10_000, 16, 2000)
        assert (made.learning_rate, made.final_learning_rate, made.weight_decay) == (
            0.1,
            0.001,
            1e-6,
        )
        assert (made.head_similarity_weight, made.class_weight) == (1.0, 1.0)
        assert made.total_variation_weight == 2.5e-5
        assert (trained.epochs, trained.batch_size, trained.optimizer) == (200, 16, "sgd")
        assert (trained.temperature, trained.structure_weight) == (5.0, 10.0)
        assert (trained.logit_weight, trained.weight_decay) == (1.0, 0.0)
        assert bits.first_layer_bits is bits.last_layer_bits is None
        assert not bits.quantize_images
        assert not any((bits.centre_attention, bits.equalise_channels, bits.skewed_grids))
        assert bits.weight_range == "minmax"
        assert bits.weight_scales == "recomputed"
        assert bits.activation_range == "lsq"
        assert bits.signed_probabilities
        assert (trained.learning_rate, trained.warmup_epochs) == (1e-3, 2)
        assert trained.gradient_clip is None
        assert not trained.follow_grid
        for layer in (FIRST_LAYER, *LAST_LAYERS, "blocks.0.attn.qkv"):
            assert bits.bits_of_layer(layer) == (4, 4)


class TestRecipes:
    def test_bits_of_layers(self, tmp_path: Path) -> None:
        source = written(tmp_path, SMALL)
        bits = load_recipe(source, settings=["quantization.last_layer_bits=6"]).quantization
        assert bits.bits_of_layer("patch_embed.proj") == (8, 8)
        assert bits.bits_of_layer("head") == bits.bits_of_layer("head_dist") == (6, 6)
        assert bits.bits_of_layer("blocks.3.mlp.fc1") == (4, 8)
        assert bits.bits_of_layer("blocks.3.head") == (4, 8)

    def test_defaults_fill_what_is_left_out(self, tmp_path: Path) -> None:
        recipe = load_recipe(written(tmp_path, SMALL))
        assert recipe.distillation.epochs == 0
        assert recipe.observation.num_images == 32
        assert recipe.synthesis.source is ImageSource.MIMIQ

    def test_bits_override_the_recipe_and_settings_the_bits(self, tmp_path: Path) -> None:
        source = written(tmp_path, SMALL)
        recipe = load_recipe(source, bits="w3a5").quantization
        assert (recipe.weight_bits, recipe.activation_bits) == (3, 5)
        settings = ["quantization.weight_bits=2", "quantization.weight_bits=7"]
        recipe = load_recipe(source, bits="w3a5", settings=settings).quantization
        assert (recipe.weight_bits, recipe.activation_bits) == (7, 5)

    def test_settings_make_sections(self, tmp_path: Path) -> None:
        source = written(tmp_path, SMALL)
        recipe = load_recipe(source, settings=["distillation.augmentation.flip=false"])
        assert recipe.distillation.augmentation.flip is False

    def test_settings_of_what_is_no_section(self, tmp_path: Path) -> None:
        source = written(tmp_path, SMALL)
        with pytest.raises(InvalidInputError, match=r"name is not a section"):
            load_recipe(source, settings=["name.first=3"])
        with pytest.raises(InvalidInputError, match=r"synthesis\.num_images is not a section"):
            load_recipe(source, settings=["synthesis.num_images.x=3"])

    def test_all_slips_and_faults_at_once(self) -> None:
        faults = faults_of("quick", "foo", "distillation.epoch=3", "name.first=3", "bar={")
        assert len(faults) == 4
        assert faults[0] == "--set is written like distillation.epochs=3; got 'foo'"
        assert "name.first cannot be made" in faults[1]
        assert faults[2] == "The value of --set 'bar={' is not YAML"
        assert faults[3].startswith("distillation.epoch: ")

    def test_slips_alone_are_not_the_recipes(self) -> None:
        with pytest.raises(InvalidInputError, match=r"^--set .*got 'a'\. --set .*got 'b'\.$") as e:
            load_recipe("quick", settings=["a", "b"])
        assert not isinstance(e.value, RecipeError)

    def test_recipes_cannot_be_changed(self) -> None:
        recipe = load_recipe("quick")
        with pytest.raises(ValueError, match="frozen"):
            recipe.name = "other"  # type: ignore[misc]


class TestPresets:
    def test_deploy_is_the_default(self, tmp_path: Path) -> None:
        source = written(tmp_path, SMALL)
        assert load_recipe(source) == load_recipe(source, settings=["preset=deploy"])

    def test_faithful_fills_in_what_is_left_out(self, tmp_path: Path) -> None:
        plain = load_recipe(written(tmp_path, SMALL))
        faithful = load_recipe(written(tmp_path, SMALL), settings=["preset=faithful"])
        assert faithful.synthesis == plain.synthesis
        assert faithful.observation == plain.observation
        for section, choices in FAITHFUL.items():
            given = getattr(faithful, section).model_dump(mode="json")
            assert given == getattr(plain, section).model_dump(mode="json") | choices
        assert faithful.quantization.weight_bits == 4

    def test_what_is_said_counts_for_more(self, tmp_path: Path) -> None:
        settings = ["preset=faithful", "quantization.last_layer_bits=8", "distillation.epochs=3"]
        recipe = load_recipe(written(tmp_path, SMALL), settings=settings)
        assert recipe.quantization.last_layer_bits == 8
        assert recipe.quantization.first_layer_bits is None
        assert (recipe.distillation.epochs, recipe.distillation.optimizer) == (3, "sgd")
        again = Recipe.model_validate(recipe.model_dump(mode="json"))
        assert again == recipe, "as in run.json"

    @pytest.mark.parametrize("name", ["quick", "balanced"])
    def test_amounts_are_the_recipes_and_choices_the_presets(self, name: str) -> None:
        recipe, paper = load_recipe(name, settings=["preset=faithful"]), load_recipe("paper")
        assert recipe.distillation.epochs == load_recipe(name).distillation.epochs
        changed = {"epochs", "batch_size"}
        left, right = (r.distillation.model_dump(exclude=changed) for r in (recipe, paper))
        assert left == right
        bits = {"weight_bits", "activation_bits"}
        left, right = (r.quantization.model_dump(exclude=bits) for r in (recipe, paper))
        assert left == right

    def test_unknown(self, tmp_path: Path) -> None:
        faults = faults_of(written(tmp_path, SMALL), "preset=magic", "distillation=3")
        assert len(faults) == 2
        assert faults_of(written(tmp_path, SMALL), "preset=faithful", "distillation=3")


class TestFineTuning:
    @pytest.mark.parametrize(
        ("value", "reconstructs", "distills"),
        [
            ("none", False, False),
            ("distill", False, True),
            ("reconstruct", True, False),
            ("reconstruct-distill", True, True),
        ],
    )
    def test_which_parts(
        self, tmp_path: Path, value: str, reconstructs: bool, distills: bool
    ) -> None:
        source = written(tmp_path, SMALL)
        chosen = load_recipe(source, settings=[f"fine_tuning={value}"]).fine_tuning
        assert (chosen.reconstructs, chosen.distills) == (reconstructs, distills)

    def test_layer_bits_as_a_setting(self, tmp_path: Path) -> None:
        setting = 'quantization.layer_bits={"*.fc2": a8, blocks.0.*: w8a8}'
        recipe = load_recipe(written(tmp_path, SMALL), settings=[setting])
        assert recipe.quantization.layer_bits == {"*.fc2": "a8", "blocks.0.*": "w8a8"}
        faults = faults_of(written(tmp_path, SMALL), "quantization.layer_bits={head: w9}")
        assert faults[0].startswith("quantization.layer_bits.head")


class TestFaults:
    def test_all_at_once(self, tmp_path: Path) -> None:
        source = written(
            tmp_path,
            """
            name: bad
            quantization: {weight_bits: 9, activation_bits: many, colour: red}
            synthesis: {iterations: 0}
            distilation: {epochs: 3}
            """,
        )
        with pytest.raises(RecipeError) as caught:
            load_recipe(source)
        message = str(caught.value)
        for part in (
            "quantization.weight_bits: input should be less than or equal to 8, got 9",
            "quantization.activation_bits: input should be a valid integer",
            "quantization.colour: unknown key",
            "synthesis.num_images: missing",
            "synthesis.iterations: input should be greater than or equal to 1, got 0",
            "distilation: unknown key",
        ):
            assert part in message
        assert len(caught.value.faults) == 6
        assert source in message

    @pytest.mark.parametrize(
        ("setting", "where"),
        [
            ("quantization.weight_bits=1", "quantization.weight_bits"),
            ("quantization.activation_bits=9", "quantization.activation_bits"),
            ("quantization.first_layer_bits=16", "quantization.first_layer_bits"),
            ("quantization.weight_range=best", "quantization.weight_range"),
            ("quantization.percentile=40", "quantization.percentile"),
            ("synthesis.num_images=0", "synthesis.num_images"),
            ("synthesis.learning_rate=0", "synthesis.learning_rate"),
            ("synthesis.learning_rate=.inf", "synthesis.learning_rate"),
            ("synthesis.class_weight=.nan", "synthesis.class_weight"),
            ("synthesis.total_variation_weight=-1", "synthesis.total_variation_weight"),
            ("synthesis.precision=fp16", "synthesis.precision"),
            ("synthesis.jitter=-1", "synthesis.jitter"),
            ("synthesis.source=web", "synthesis.source"),
            ("synthesis.source=folder", "synthesis"),
            ("synthesis.folder=photos", "synthesis"),
            ("observation.num_images=0", "observation.num_images"),
            ("distillation.epochs=-1", "distillation.epochs"),
            ("distillation.epochs=2.5", "distillation.epochs"),
            ("distillation.optimizer=lamb", "distillation.optimizer"),
            ("distillation.temperature=0", "distillation.temperature"),
            ("distillation.gradient_clip=0", "distillation.gradient_clip"),
            (
                "distillation.final_learning_rate_ratio=1.5",
                "distillation.final_learning_rate_ratio",
            ),
            ("distillation.augmentation.colour=2", "distillation.augmentation.colour"),
            (
                "distillation.augmentation.smallest_crop=0",
                "distillation.augmentation.smallest_crop",
            ),
            ("distillation.augmentation=3", "distillation.augmentation"),
            ("distillation=[1, 2]", "distillation"),
            ("name=3", "name"),
            ("nonsense=1", "nonsense"),
        ],
    )
    def test_values(self, tmp_path: Path, setting: str, where: str) -> None:
        (fault,) = faults_of(written(tmp_path, SMALL), setting)
        assert fault.startswith(f"{where}: ")

    def test_folder_and_its_source_together_are_fine(self) -> None:
        settings = ["synthesis.source=folder", "synthesis.folder=photos"]
        assert load_recipe("quick", settings=settings).synthesis.folder == "photos"


class TestFiles:
    @pytest.mark.parametrize("content", ["", "- a\n- b\n", "text", "3", "null", "# nothing"])
    def test_no_mapping(self, tmp_path: Path, content: str) -> None:
        assert faults_of(written(tmp_path, content)) == (
            "expected keys such as quantization and synthesis",
        )

    @pytest.mark.parametrize(
        "content",
        [
            "name: [",
            "name: !!python/object/apply:os.system [ls]",
            "name: !!int ''",
            "name: !!bool x",
            "name: !!timestamp x",
            "name: 2020-99-99",
            "name: " + "9" * 5000,
            "name: " + "[" * 5000,
            "? [a, b]\n: 3",
            "{1: 2, 1: 3}",
            "name: \x00",
            "name: a\n---\nname: b",
            "\tname: a",
        ],
        ids=lambda content: content[:30],
    )
    def test_no_yaml_that_can_be_used(self, tmp_path: Path, content: str) -> None:
        (fault,) = faults_of(written(tmp_path, content))
        assert fault.startswith("not a YAML file that can be used")

    def test_code_in_yaml_is_not_run(self, tmp_path: Path) -> None:
        witness = tmp_path / "witness"
        source = written(tmp_path, f"name: !!python/object/apply:os.mkdir ['{witness}']")
        faults_of(source)
        assert not witness.exists()

    def test_aliases_are_refused_before_they_grow(self, tmp_path: Path) -> None:
        lines = ["a0: &a0 [lol, lol]"]
        lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
        (fault,) = faults_of(written(tmp_path, "\n".join(lines)))
        assert "aliases" in fault
        (fault,) = faults_of(written(tmp_path, "a: &a [*a]"))
        assert "aliases" in fault

    def test_an_anchor_alone_is_harmless(self, tmp_path: Path) -> None:
        assert load_recipe(written(tmp_path, SMALL.replace("small", "&here small"))).name == "small"

    @pytest.mark.parametrize(
        ("content", "key"),
        [
            (SMALL + "name: again\n", "name"),
            (SMALL.replace("activation_bits", "weight_bits"), "weight_bits"),
            ("a: {b: {c: 1, d: 2, c: 3}}", "c"),
            ("1: a\n1: b", "1"),
        ],
    )
    def test_repeated_keys(self, tmp_path: Path, content: str, key: str) -> None:
        (fault,) = faults_of(written(tmp_path, content))
        assert f"the key {key} is there more than once" in fault

    def test_merging_is_refused(self, tmp_path: Path) -> None:
        (fault,) = faults_of(written(tmp_path, SMALL + "<<: {weight_bits: 2}\n"))
        assert fault

    def test_too_large(self, tmp_path: Path) -> None:
        path = tmp_path / "large.yaml"
        path.write_text(SMALL + "#" * LARGEST_FILE)
        assert "larger than" in faults_of(str(path))[0]
        path.write_text(SMALL + "#" * (LARGEST_FILE - len(SMALL)))
        assert load_recipe(str(path)).name == "small"

    def test_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "binary.yaml"
        path.write_bytes(b"\xff\xfe\x00")
        assert "cannot be read as text" in faults_of(str(path))[0]

    @pytest.mark.parametrize("name", ["nowhere.yaml", "quickest", "", ".", "../recipes/quick"])
    def test_not_there(self, name: str) -> None:
        with pytest.raises(InvalidInputError, match=r"There is no recipe.*balanced.*quick"):
            load_recipe(name)


class TestNotation:
    @pytest.mark.parametrize(
        ("text", "bits"), [("w4a8", (4, 8)), ("W2A2", (2, 2)), ("w8a3", (8, 3))]
    )
    def test_bits(self, text: str, bits: tuple[int, int]) -> None:
        assert parse_bits(text) == bits

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "w4",
            "a4",
            "4,8",
            "w1a4",
            "w4a9",
            "w16a16",
            "w4a8 ",
            "xw4a8",
            "w-4a8",
            "w4.0a8",
            "w04a8",
            "w٤a٨",
            "w" + "4" * 5000 + "a4",
        ],
        ids=lambda text: text[:12],
    )
    def test_other_bits(self, text: str) -> None:
        with pytest.raises(InvalidInputError, match="like w4a8, each from 2 to 8"):
            parse_bits(text)

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("a=3", (["a"], 3)),
            ("a.b.c=0.5", (["a", "b", "c"], 0.5)),
            (" a = true", (["a"], True)),
            ("a=", (["a"], None)),
            ("a=null", (["a"], None)),
            ("a=x=y", (["a"], "x=y")),
            ("a='3'", (["a"], "3")),
            ("a=[1, 2.5, x]", (["a"], [1, 2.5, "x"])),
            ("a={b: 1}", (["a"], {"b": 1})),
            ("a=2024-01-02", (["a"], date(2024, 1, 2))),
        ],
    )
    def test_settings(self, text: str, expected: tuple[list[str], Any]) -> None:
        assert parse_setting(text) == expected

    @pytest.mark.parametrize("text", ["", "a", "=3", "  =3", "distillation.epochs 3"])
    def test_no_settings(self, text: str) -> None:
        with pytest.raises(InvalidInputError, match=r"like distillation\.epochs=3"):
            parse_setting(text)

    @pytest.mark.parametrize(
        "value",
        [
            "[",
            "{a: 1, a: 2}",
            "*a",
            "2020-99-99",
            "!!int ''",
            "!!bool x",
            "!!timestamp x",
            "!!python/name:os.system",
            "[" * 5000,
            "9" * 5000,
        ],
        ids=lambda value: value[:20],
    )
    def test_values_that_are_no_yaml(self, value: str) -> None:
        with pytest.raises(InvalidInputError, match="is not YAML"):
            parse_setting(f"a={value}")

    def test_numbers_as_yaml_reads_them(self) -> None:
        """YAML 1.1 would take 1e-4 for text; it is read as the number that was meant."""
        assert parse_setting("a=1e-4")[1] == 1e-4
        assert yaml.safe_load("1e-4") == "1e-4"
        settings = ["distillation.learning_rate=1e-4"]
        assert load_recipe("quick", settings=settings).distillation.learning_rate == 1e-4

    def test_overrides(self) -> None:
        named = {"option": "--model-arg", "example": "img_size=32"}
        given = overrides_of(["img_size=32", "a.b=[1, 2]"], **named)
        assert given == {"img_size": 32, "a.b": [1, 2]}
        assert overrides_of([], **named) == {}
