"""The cells of a study: which combinations are calibrated, and by which settings."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mimiq_deploy.recipe_loading import load_recipe
from mimiq_runtime.errors import InvalidInputError

if TYPE_CHECKING:
    from pathlib import Path

    from mimiq_calib.recipe import Recipe

__all__ = [
    "ABLATIONS",
    "FOLDER",
    "METHOD",
    "Cell",
    "StudyGrid",
    "known_fine_tunings",
    "known_sources",
]

FOLDER = "folder"
METHOD = "mimiq"

ABLATIONS = {
    "head-similarity": "synthesis.head_similarity_weight=0",
    "structure": "distillation.structure_weight=0",
}
"""The two losses of the method, and the setting that takes each away."""


def known_sources() -> list[str]:
    """The sources of images that a recipe may name."""
    from mimiq_calib.recipe import ImageSource

    return [source.value for source in ImageSource]


def known_fine_tunings() -> list[str]:
    """The kinds of fine-tuning that a recipe may ask for."""
    return list(_fine_tuning_settings())


def _fine_tuning_settings() -> dict[str, str]:
    """Each kind of fine-tuning, and the setting that asks for it."""
    from mimiq_calib.recipe import FineTuning

    return {kind.value: f"fine_tuning={kind.value}" for kind in FineTuning}


@dataclass(frozen=True)
class Cell:
    """One run of a study.

    Attributes:
        bits: Such as ``w4a4``.
        source: Where its images come from.
        fine_tuning: How its model was trained.
        without: The loss that was taken away, one of :data:`ABLATIONS`; None for neither.
        seed: Seed of every random choice.
    """

    bits: str
    source: str
    fine_tuning: str
    without: str | None
    seed: int

    @property
    def name(self) -> str:
        """Name of its run directory."""
        without = f"-without-{self.without}" if self.without else ""
        return f"{self.bits}-{self.source}{without}-{self.fine_tuning}-seed{self.seed}"

    @property
    def images(self) -> tuple[str, str | None, int]:
        """Equal for cells that have the same images."""
        return self.source, self.without if self.without == "head-similarity" else None, self.seed


@dataclass(frozen=True)
class StudyGrid:
    """What is combined with what.

    Attributes:
        bits: Such as ``w4a4``.
        sources: Where images come from.
        fine_tunings: How models are trained.
        seeds: Seeds of the repetitions.
        ablations: Whether the losses of the method are also taken away, one at a time.
        folder: Folder of pictures for the source ``folder``.
        recipe: Name or file of the recipe that all cells start from.
        settings: Changes to it for all cells, such as ``distillation.epochs=3``.
    """

    bits: tuple[str, ...]
    sources: tuple[str, ...]
    fine_tunings: tuple[str, ...]
    seeds: tuple[int, ...]
    ablations: bool = False
    folder: Path | None = None
    recipe: str = "quick"
    settings: tuple[str, ...] = field(default=())

    def cells(self) -> list[Cell]:
        """All combinations, seed by seed, so that an interrupted study is a smaller study."""
        return [
            Cell(bits, source, fine_tuning, without, seed)
            for seed in self.seeds
            for bits in self.bits
            for source in self.sources
            for fine_tuning in self.fine_tunings
            for without in self._ablations_of(source, fine_tuning)
        ]

    def recipe_of(self, cell: Cell) -> Recipe:
        """The recipe of one cell.

        Raises:
            RecipeError: It does not validate.
            InvalidInputError: The source is a folder, and none is named.
        """
        if cell.source == FOLDER and self.folder is None:
            raise InvalidInputError(
                "The source folder needs a folder of pictures: name one with --folder, or leave "
                "the source out."
            )
        # JSON is YAML: any path comes through.
        folder = json.dumps(str(self.folder)) if cell.source == FOLDER else "null"
        settings = [
            *self.settings,
            f"synthesis.source={cell.source}",
            f"synthesis.folder={folder}",
            _fine_tuning_settings()[cell.fine_tuning],
            ABLATIONS[cell.without] if cell.without else "",
        ]
        return load_recipe(self.recipe, bits=cell.bits, settings=[s for s in settings if s])

    def _ablations_of(self, source: str, fine_tuning: str) -> list[str | None]:
        if not self.ablations or source != METHOD:
            return [None]
        distils = "distill" in fine_tuning
        return [None, "head-similarity", *(["structure"] if distils else [])]
