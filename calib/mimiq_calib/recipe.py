"""What a user may choose about a calibration, validated before any work starts.

A recipe is a YAML file with the keys of :class:`Recipe`; those shipped are in
``mimiq_deploy/recipes``. Imports no torch, so that a typing mistake is reported at once.
"""

from __future__ import annotations

import re
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from mimiq_runtime.schema import Schema

__all__ = [
    "AugmentationSettings",
    "DistillationSettings",
    "FineTuning",
    "ImageSource",
    "ObservationSettings",
    "PatchSimilaritySettings",
    "Precision",
    "Preset",
    "QuantizationSettings",
    "Recipe",
    "ReconstructionSettings",
    "Start",
    "SynthesisSettings",
]

Bits = Field(ge=2, le=8)

MANY = 1_000_000
"""No count of a recipe is larger: one more zero than meant is found before memory is taken."""

WidthNotation = Annotated[str, StringConstraints(pattern=r"^(w[2-8](a[2-8])?|a[2-8])$")]
"""Bits of weight and activation such as ``w4a8``, or only one of them: ``w8``, ``a8``."""

FIRST_LAYER = "patch_embed.proj"
LAST_LAYERS = ("head", "head_dist", "head.fc")


class ImageSource(StrEnum):
    """Where calibration images come from."""

    MIMIQ = "mimiq"
    PATCH_SIMILARITY = "patch-similarity"
    NOISE = "noise"
    FOLDER = "folder"


class Start(StrEnum):
    """What the images of the source ``mimiq`` are before the first step.

    ``noise``: normal noise, as published. ``dead-leaves``: pictures of random shapes, which have
    the contrast, plain areas and edges that a few hundred steps do not make of noise.
    """

    NOISE = "noise"
    DEAD_LEAVES = "dead-leaves"


class FineTuning(StrEnum):
    """How the quantized model learns from the full-precision one.

    ``none``: not at all, first scales are the result. ``distill``: the whole model at once.
    ``reconstruct``: block by block. ``reconstruct-distill``: first the one, then the other.
    """

    NONE = "none"
    DISTILL = "distill"
    RECONSTRUCT = "reconstruct"
    RECONSTRUCT_DISTILL = "reconstruct-distill"

    @property
    def reconstructs(self) -> bool:
        """Whether blocks are trained one by one."""
        return self in {FineTuning.RECONSTRUCT, FineTuning.RECONSTRUCT_DISTILL}

    @property
    def distills(self) -> bool:
        """Whether the whole model is trained at once."""
        return self in {FineTuning.DISTILL, FineTuning.RECONSTRUCT_DISTILL}


class Preset(StrEnum):
    """Where settings that a recipe leaves out come from.

    ``deploy``: the defaults, chosen for accuracy in an engine. ``faithful``: the choices of the
    MimiQ paper and its published code (docs/method.md, section 7), as far as an engine can run
    them.
    """

    DEPLOY = "deploy"
    FAITHFUL = "faithful"


FAITHFUL: dict[str, dict[str, Any]] = {
    "quantization": {
        "first_layer_bits": None,
        "last_layer_bits": None,
        "quantize_images": False,
        "weight_range": "minmax",
        "weight_scales": "recomputed",
        "activation_range": "lsq",
        "signed_probabilities": True,
        "centre_attention": False,
        "equalise_channels": False,
        "skewed_grids": False,
    },
    "distillation": {
        "optimizer": "sgd",
        # The paper gives no rate for each model; this is that of a later work's example.
        "learning_rate": 1e-3,
        "follow_grid": False,
        "scale_learning_rate": 1e-3,
        "warmup_epochs": 2,
        "temperature": 5.0,
        "logit_weight": 1.0,
        "structure_weight": 10.0,
        "gradient_clip": None,
        "precision": "fp32",
    },
}


class Precision(StrEnum):
    """Arithmetic of the forward and backward passes.

    ``auto`` is bfloat16 where the processor or GPU computes it natively, else single precision.
    """

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"


class _Section(Schema):
    """A part of a recipe; YAML's .inf and .nan are no numbers to calibrate with."""

    model_config = ConfigDict(allow_inf_nan=False)


class QuantizationSettings(_Section):
    """Bit widths, and how ranges are first chosen.

    Attributes:
        weight_bits: Bits of all weights, per output channel, symmetric.
        activation_bits: Bits of all activations, per tensor.
        first_layer_bits: Bits of the patch embedding's weight and input; None for the above.
        last_layer_bits: Bits of the classifier's weight and input; None for the above.
        layer_bits: Bits of single layers by patterns of their names, such as
            ``{"blocks.*.fc2": "a8"}``; see :meth:`bits_of_layer`.
        quantize_images: Whether the patch embedding's input is quantized (the paper keeps it in
            floating point).
        weight_range: How the weights' scales are first chosen.
        weight_scales: ``learned`` like those of activations; or ``recomputed`` from each channel's
            largest magnitude whenever the weight is used, as the paper's code has it.
        activation_range: How the activations' scales are first chosen; ``lsq`` is the rule of the
            LSQ paper, from the mean magnitude.
        signed_probabilities: Whether attention probabilities get a signed grid, half of which
            stays empty, as in the paper's code.
        percentile: The percentile for ranges chosen by it, in percent.
        centre_attention: Whether the mean key and value are folded into biases, exactly.
        equalise_channels: Whether the ranges of the channels of LayerNorm and attention outputs
            are evened out by what is folded into their neighbours, exactly.
        skewed_grids: Whether a skewed activation gets a skewed grid, such as -1..14 behind GELU.
    """

    weight_bits: int = Bits
    activation_bits: int = Bits
    first_layer_bits: int | None = Field(default=8, ge=2, le=8)
    last_layer_bits: int | None = Field(default=8, ge=2, le=8)
    layer_bits: dict[str, WidthNotation] = Field(default_factory=dict)
    quantize_images: bool = True
    weight_range: Literal["minmax", "percentile", "mse"] = "mse"
    weight_scales: Literal["learned", "recomputed"] = "learned"
    activation_range: Literal["minmax", "percentile", "mse", "lsq"] = "mse"
    signed_probabilities: bool = False
    percentile: float = Field(default=99.99, ge=50, le=100)
    centre_attention: bool = True
    equalise_channels: bool = True
    skewed_grids: bool = True

    def bits_of_layer(self, name: str) -> tuple[int, int]:
        """Bits of the weight and of the input of a layer, by its dotted name.

        Patterns of :attr:`layer_bits` (``*``, ``?``, ``[...]``) are compared with the whole name,
        in the order of the recipe; of those that match, the last one counts, and counts for more
        than :attr:`first_layer_bits` and :attr:`last_layer_bits`. The operands of the attention
        products have names, too: ``blocks.0.attn.query``, and ``key``, ``value``,
        ``probability``; they have no weight.
        """
        own = None
        if name == FIRST_LAYER:
            own = self.first_layer_bits
        elif name in LAST_LAYERS:
            own = self.last_layer_bits
        weight, activation = own or self.weight_bits, own or self.activation_bits
        for pattern, widths in self.layer_bits.items():
            if fnmatchcase(name, pattern):
                given = dict(re.findall(r"([wa])(\d)", widths))
                weight = int(given.get("w", weight))
                activation = int(given.get("a", activation))
        return weight, activation


class PatchSimilaritySettings(_Section):
    """The source ``patch-similarity`` (PSAQ-ViT, section 2.6 of docs/method.md).

    Attributes:
        learning_rate: The largest of each of the two rounds; 0.25 is published for Swin.
        warmup: Share of a round in which the learning rate rises; then it falls along a cosine.
        entropy_weight: Weight of the entropy of the patches' similarities, the sum over layers.
        class_weight: Weight of the cross-entropy with the random label.
        total_variation_weight: Weight of the distance of the total variation from its target.
        total_variation_low: The least that the target may be, for 32 images of 224 x 224; it is
            scaled with the square root of their number and size.
        total_variation_high: The most.
        jitter: Largest shift in pixels in the first round; twice as much in the second. None for
            the paper's 15 pixels at 224, scaled to the model's input.
        flip: Whether images are mirrored at random.
    """

    learning_rate: float = Field(default=0.2, gt=0)
    warmup: float = Field(default=0.2, ge=0, lt=1)
    entropy_weight: float = Field(default=1.0, ge=0)
    class_weight: float = Field(default=1.0, ge=0)
    total_variation_weight: float = Field(default=0.05, ge=0)
    total_variation_low: float = Field(default=2500.0, ge=0)
    total_variation_high: float = Field(default=3000.0, ge=0)
    jitter: int | None = Field(default=None, ge=0, le=MANY)
    flip: bool = True

    @model_validator(mode="after")
    def _range_is_in_order(self) -> Self:
        if self.total_variation_low > self.total_variation_high:
            raise ValueError("total_variation_low is above total_variation_high")
        return self


class SynthesisSettings(_Section):
    """How calibration images are made (section 2 of docs/method.md).

    ``num_images``, ``batch_size``, ``iterations``, ``precision`` and ``compile`` count for every
    source that makes images from the weights; ``patch_similarity`` holds what is particular to that
    source, all other keys are MimiQ's.

    Attributes:
        source: Where the images come from.
        folder: Folder of pictures for the source ``folder``.
        num_images: How many images to calibrate with.
        held_out: Images made beyond these, which nothing is chosen by or trained on; what
            quantization costs is estimated by them (docs/estimate.md). 0 for no estimate.
        dead_leaves: Pictures of random shapes that are mixed in, drawn without any model
            (docs/method.md, section 2.8).
        batch_size: Images optimised together; one shard on disk.
        iterations: Optimisation steps of a batch.
        start: What they begin from (docs/method.md, section 2.8); MimiQ's, as all keys from here to
            ``flip``.
        learning_rate: Of AdamW at the start; falls along a cosine to ``final_learning_rate``.
        final_learning_rate: Of AdamW at the end.
        weight_decay: Of AdamW.
        head_similarity_weight: Weight of the inter-head loss.
        class_weight: Weight of the cross-entropy with the random label.
        total_variation_weight: Weight of the total variation.
        jitter: Largest shift in pixels in the first half; twice as much in the second. None for
            the paper's 8 pixels at 224, scaled to the model's input.
        flip: Whether images are mirrored at random.
        precision: Arithmetic of forward and backward passes.
        compile: Whether the steps go through torch.compile. None: on a GPU, unless that fails;
            True: a failure is an error.
        patch_similarity: The source ``patch-similarity``.
    """

    source: ImageSource = ImageSource.MIMIQ
    folder: str | None = None
    num_images: int = Field(ge=1, le=MANY)
    held_out: int = Field(default=0, ge=0, le=MANY)
    dead_leaves: int = Field(default=0, ge=0, le=MANY)
    batch_size: int = Field(default=16, ge=1, le=MANY)
    iterations: int = Field(default=2000, ge=1, le=MANY)
    start: Start = Start.NOISE
    learning_rate: float = Field(default=0.1, gt=0)
    final_learning_rate: float = Field(default=0.001, ge=0)
    weight_decay: float = Field(default=1e-6, ge=0)
    head_similarity_weight: float = Field(default=1.0, ge=0)
    class_weight: float = Field(default=1.0, ge=0)
    total_variation_weight: float = Field(default=2.5e-5, ge=0)
    jitter: int | None = Field(default=None, ge=0, le=MANY)
    flip: bool = False
    precision: Precision = Precision.AUTO
    compile: bool | None = None
    patch_similarity: PatchSimilaritySettings = PatchSimilaritySettings()

    @property
    def total(self) -> int:
        """Images from the source, those that are held out among them, at the end."""
        return self.num_images + self.held_out

    @model_validator(mode="after")
    def _folder_belongs_to_its_source(self) -> Self:
        if (self.source is ImageSource.FOLDER) != (self.folder is not None):
            raise ValueError("source 'folder' and the key 'folder' go together")
        return self


class ObservationSettings(_Section):
    """On how many images the activations' first ranges are chosen.

    Attributes:
        num_images: At most this many, from the first on.
        batch_size: Images a forward pass.
    """

    num_images: int = Field(default=32, ge=1, le=MANY)
    batch_size: int = Field(default=16, ge=1, le=MANY)


class AugmentationSettings(_Section):
    """Random changes to the synthetic images while distilling (section 3.3 of docs/method.md).

    Attributes:
        enabled: Whether images are changed at all.
        smallest_crop: Smallest share of the area that a random crop keeps.
        flip: Whether images are mirrored at random.
        colour: Probability of a random change of brightness, contrast, saturation and hue.
        grayscale: Probability of losing the colour.
        blur: Probability of a Gaussian blur.
    """

    enabled: bool = True
    smallest_crop: float = Field(default=0.08, gt=0, le=1)
    flip: bool = True
    colour: float = Field(default=0.8, ge=0, le=1)
    grayscale: float = Field(default=0.2, ge=0, le=1)
    blur: float = Field(default=0.5, ge=0, le=1)


class ReconstructionSettings(_Section):
    """How the quantized model is trained block by block (docs/method.md, section 3.4).

    Attributes:
        iterations: Optimisation steps of each block.
        batch_size: Images a step.
        views: Each image is used this often: as it is, and changed at random.
        learning_rate: Of Adam for weights, biases and normalisation, at the start.
        follow_grid: As in distillation: the rate is that for 4-bit weights, and
            ``scale_learning_rate`` is that for scales of 4-bit grids. The largest values of an
            8-bit grid are sixteen times as many steps, and move by as many when its scale does.
        scale_learning_rate: Of the scales' logarithms, at the start.
        final_learning_rate_ratio: Learning rate at the end as a share of that at the start.
        exact_input_share: Share of a block's input values that are the full-precision model's,
            drawn anew in each step (QDrop).
        weigh_by_importance: Whether a value's error counts by what the logits owe to it (Fisher
            information, as in BRECQ), or all values count the same.
        temperature: Of the softmax for that importance.
        augmentation: Random changes to the views.
        precision: Arithmetic of the training steps.
    """

    iterations: int = Field(default=100, ge=1, le=MANY)
    batch_size: int = Field(default=16, ge=1, le=MANY)
    views: int = Field(default=4, ge=1, le=MANY)
    learning_rate: float = Field(default=2e-4, gt=0)
    follow_grid: bool = True
    scale_learning_rate: float = Field(default=5e-3, ge=0)
    final_learning_rate_ratio: float = Field(default=0.01, ge=0, le=1)
    exact_input_share: float = Field(default=0.5, ge=0, le=1)
    weigh_by_importance: bool = True
    temperature: float = Field(default=5.0, gt=0)
    augmentation: AugmentationSettings = AugmentationSettings()
    precision: Precision = Precision.AUTO

    def at_bits(self, weight_bits: int) -> Self:
        """These settings with the learning rate for weights of this width."""
        if not self.follow_grid:
            return self
        rate = self.learning_rate * 2.0 ** (4 - weight_bits)
        return self.model_copy(update={"learning_rate": rate})

    def scale_rate_at(self, codes: int) -> float:
        """The learning rate of the scale of a grid with so many codes."""
        return self.scale_learning_rate * (16 / codes if self.follow_grid else 1)


class DistillationSettings(_Section):
    """How the quantized model is trained on the full-precision one (docs/method.md, section 3).

    Attributes:
        epochs: Passes over the images; 0 for calibrated ranges only.
        batch_size: Images a step.
        optimizer: ``sgd`` with Nesterov momentum 0.9 as published, or ``adamw``.
        learning_rate: Of weights, biases and normalisation, at the start; falls along a cosine.
        follow_grid: Whether ``learning_rate`` is meant for 4-bit weights and doubles or halves
            with the step of the grid: AdamW moves every weight by about the learning rate,
            which is sixteen times as many steps of the grid at 8 bits as at 4.
        scale_learning_rate: Of the scales' logarithms.
        final_learning_rate_ratio: Learning rate at the end as a share of that at the start.
        warmup_epochs: Epochs in which only the scales learn.
        weight_decay: Of weights and biases.
        temperature: Of the softmax in the Kullback-Leibler loss.
        logit_weight: Weight of the Kullback-Leibler loss.
        structure_weight: Weight of the head-wise structural attention loss (gamma).
        gradient_clip: Largest norm of all gradients together; None for no limit.
        augmentation: Random changes to the images.
        precision: Arithmetic of forward and backward passes.
    """

    epochs: int = Field(default=0, ge=0, le=MANY)
    batch_size: int = Field(default=16, ge=1, le=MANY)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    learning_rate: float = Field(default=1e-4, gt=0)
    follow_grid: bool = True
    scale_learning_rate: float = Field(default=1e-3, ge=0)
    final_learning_rate_ratio: float = Field(default=0.01, ge=0, le=1)
    warmup_epochs: int = Field(default=0, ge=0, le=MANY)
    weight_decay: float = Field(default=0.0, ge=0)
    temperature: float = Field(default=5.0, gt=0)
    logit_weight: float = Field(default=1.0, ge=0)
    structure_weight: float = Field(default=10.0, ge=0)
    gradient_clip: float | None = Field(default=1.0, gt=0)
    augmentation: AugmentationSettings = AugmentationSettings()
    precision: Precision = Precision.AUTO

    def at_bits(self, weight_bits: int) -> Self:
        """These settings with the learning rate for a width of the weights; see above."""
        if not self.follow_grid:
            return self
        rate = self.learning_rate * 2.0 ** (4 - weight_bits)
        return self.model_copy(update={"learning_rate": rate})


class Recipe(_Section):
    """All choices of a calibration.

    Attributes:
        name: Shown in reports and written into the ONNX file.
        preset: Where settings that are left out come from.
        quantization: Bit widths and first ranges.
        synthesis: How calibration images are made.
        observation: On how many of them ranges are chosen.
        fine_tuning: How the quantized model is trained; it says which of the next two are used.
        reconstruction: How it is trained block by block.
        distillation: How it is trained as a whole.
    """

    name: str
    preset: Preset = Preset.DEPLOY
    quantization: QuantizationSettings
    synthesis: SynthesisSettings
    observation: ObservationSettings = ObservationSettings()
    fine_tuning: FineTuning = FineTuning.DISTILL
    reconstruction: ReconstructionSettings = ReconstructionSettings()
    distillation: DistillationSettings = DistillationSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill_in_the_preset(cls, content: Any) -> Any:
        """What a recipe says itself counts for more than its preset."""
        if not isinstance(content, dict) or content.get("preset") != Preset.FAITHFUL:
            return content
        filled = dict(content)
        for section, choices in FAITHFUL.items():
            given = filled.get(section, {})
            if isinstance(given, dict):
                filled[section] = choices | given
        return filled
