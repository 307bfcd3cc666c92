"""What the cells of a study are measured on: labelled pictures, or unseen synthetic images."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_deploy.study.grid import FOLDER, METHOD
from mimiq_deploy.study.report import Yardstick
from mimiq_runtime.atomic import atomic_path
from mimiq_runtime.dataset import iterate_batches, open_labelled_images
from mimiq_runtime.errors import RunDirectoryError
from mimiq_runtime.evaluation import EVALUATION, Evaluation, read_evaluation
from mimiq_runtime.metrics import agreement, kl_divergence, top1_accuracy
from mimiq_runtime.preprocessing import normalise
from mimiq_runtime.progress import progress_bar
from mimiq_runtime.run_images import read_shard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from mimiq_calib.recipe import SynthesisSettings
    from mimiq_calib.synthesis.image_similarity import HeadSimilarity
    from mimiq_runtime.run_directory import RunDirectory

__all__ = ["Images", "LabelledPictures", "Measurement", "UnseenImages"]

STAGE = "study"


class LabelledPictures:
    """Pictures with labels: the score is the accuracy.

    Args:
        folder: Where they are.
        run: A run of the model, for its classes and preprocessing.
        limit: At most this many.
        batch_size: Pictures a forward pass.

    Raises:
        DatasetError: The folder cannot be used.
    """

    score = "accuracy"

    def __init__(
        self, folder: Path, run: RunDirectory, *, limit: int | None, batch_size: int
    ) -> None:
        self.origin = str(folder)
        self._preprocessing = run.manifest.preprocessing
        self._batch_size = batch_size
        self._labelled = open_labelled_images(
            folder, num_classes=run.manifest.model.num_classes, limit=limit
        )

    def __len__(self) -> int:
        return len(self._labelled)

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """Normalised images, ``(n, c, h, w)``."""
        batches = iterate_batches(self._labelled, self._preprocessing, batch_size=self._batch_size)
        return (images for images, _ in batches)

    def rate(self, teacher: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
        """Accuracy of ``logits``, 0 to 1."""
        return top1_accuracy(logits, self._labelled.labels)

    def identity(self) -> Any:
        """What tells these pictures from others, without reading each of them."""
        return [
            (path.name, path.stat().st_size, int(label))
            for path, label in zip(self._labelled.paths, self._labelled.labels, strict=True)
        ]


class UnseenImages:
    """Synthetic images that no cell was calibrated on: the score is agreement with the teacher.

    Equally many of each source of the study that needs no data, so that none is measured on its
    own kind of images alone.

    Args:
        teacher: Full-precision model with exposed attention.
        run: A run of the model, for its classes and preprocessing.
        settings: How images are made.
        sources: The sources of the study.
        count: How many in all, at least; rounded up to the same number of each source.
        seed: Seed of the study.
        device: Where the teacher is.
        folder: Where they are kept for the next time, one file a source.
    """

    score = "agreement"

    def __init__(
        self,
        teacher: nn.Module,
        run: RunDirectory,
        settings: SynthesisSettings,
        *,
        sources: Sequence[str],
        count: int,
        seed: int,
        device: torch.device,
        folder: Path,
    ) -> None:
        made = [source for source in sources if source != FOLDER] or [METHOD]
        self.origin = ", ".join(made)
        self._preprocessing = run.manifest.preprocessing
        self._batch_size = settings.batch_size
        each = -(-count // len(made))
        self._pixels = np.concatenate(
            [
                _made_before_or_now(
                    teacher,
                    run,
                    settings.model_copy(
                        update={"source": type(settings.source)(source), "folder": None}
                    ),
                    each,
                    seed=seed,
                    device=device,
                    path=folder / f"unseen-{source}.safetensors",
                )
                for source in made
            ]
        )

    def __len__(self) -> int:
        return len(self._pixels)

    def batches(self) -> Iterator[NDArray[np.float32]]:
        """Normalised images, ``(n, c, h, w)``."""
        for start in range(0, len(self), self._batch_size):
            pixels = self._pixels[start : start + self._batch_size]
            yield normalise(pixels, self._preprocessing)

    def rate(self, teacher: NDArray[np.float32], logits: NDArray[np.float32]) -> float:
        """Agreement of ``logits`` with the teacher's, 0 to 1."""
        return agreement(teacher, logits)

    def identity(self) -> Any:
        """Digest of the pixels."""
        return hashlib.sha256(self._pixels.tobytes()).hexdigest()


Images = LabelledPictures | UnseenImages


class Measurement:
    """Measures runs of one model on the same images.

    Args:
        teacher: Full-precision model with exposed attention.
        images: What to measure on.
        run: A run of the model, for its weights' digest.
        device: Where the teacher is.
    """

    def __init__(
        self, teacher: nn.Module, images: Images, run: RunDirectory, device: torch.device
    ) -> None:
        self._teacher = teacher
        self._images = images
        self._device = device
        self._similarities: dict[tuple[str, ...], HeadSimilarity] = {}
        self._reference = self._logits(teacher)
        deciding = [run.manifest.model.weights_sha256, images.score, images.identity()]
        self.yardstick = Yardstick(
            score=images.score,
            images=len(images),
            origin=images.origin,
            full_precision=images.rate(self._reference, self._reference),
            sha256=hashlib.sha256(json.dumps(deciding).encode()).hexdigest(),
        )

    def measure(self, run: RunDirectory) -> Evaluation:
        """Measure a calibrated run, or read what was measured of it on the same images."""
        with run.writing("study"):
            return self._measure(run)

    def _measure(self, run: RunDirectory) -> Evaluation:
        from mimiq_calib.run_models import load_student

        # One that is damaged is measured anew.
        with contextlib.suppress(RunDirectoryError):
            before = read_evaluation(run)
            if before is not None and before.yardstick == self.yardstick.sha256:
                return before
        logits = self._logits(load_student(run).to(self._device))
        divergence = kl_divergence(self._reference, logits)
        similarity = self._head_similarity(run)
        measured = Evaluation(
            yardstick=self.yardstick.sha256,
            score=self._images.rate(self._reference, logits),
            agreement=agreement(self._reference, logits),
            kl=divergence if np.isfinite(divergence) else None,
            head_similarity=similarity.ssim,
            squared_similarity=similarity.squared,
        )
        run.write_json(EVALUATION, measured.model_dump(mode="json"))
        return measured

    def _logits(self, model: nn.Module) -> NDArray[np.float32]:
        import torch

        rows = []
        with torch.inference_mode(), progress_bar("measuring", len(self._images)) as advance:
            for images in self._images.batches():
                logits = model(torch.from_numpy(images).to(self._device))
                rows.append(logits.float().cpu().numpy())
                advance(len(images), "")
        return np.concatenate(rows)

    def _head_similarity(self, run: RunDirectory) -> HeadSimilarity:
        """Of all images of a run; many runs of a study have the same ones."""
        import torch

        from mimiq_calib.pixels import PixelScale
        from mimiq_calib.synthesis.image_similarity import head_similarity_of_images

        names = sorted(name for name in run.manifest.files if name.startswith("images/shard-"))
        key = tuple(run.manifest.files[name].sha256 for name in names)
        if key not in self._similarities:
            shards = [read_shard(run, name) for name in names]
            self._similarities[key] = head_similarity_of_images(
                self._teacher,
                torch.cat([torch.from_numpy(shard) for shard in shards]),
                PixelScale(run.manifest.preprocessing, self._device),
                batch_size=len(shards[0]),
            )
        return self._similarities[key]


def _made_before_or_now(
    teacher: nn.Module,
    run: RunDirectory,
    settings: SynthesisSettings,
    count: int,
    *,
    seed: int,
    device: torch.device,
    path: Path,
) -> NDArray[np.uint8]:
    """Images of one source, uint8 ``(count, c, h, w)``, from ``path`` where they are there."""
    from safetensors import safe_open
    from safetensors.numpy import save_file

    deciding = [
        run.manifest.model.weights_sha256,
        run.manifest.preprocessing.model_dump(mode="json"),
        settings.model_dump(mode="json"),
        count,
        seed,
    ]
    digest = hashlib.sha256(json.dumps(deciding).encode()).hexdigest()
    if path.exists():
        with safe_open(path, framework="numpy") as file:
            if (file.metadata() or {}).get("made_of") == digest:
                return np.asarray(file.get_tensor("images"))
    images = _make(teacher, run, settings, count, seed=seed, device=device)
    with atomic_path(path) as temporary:
        save_file({"images": images}, temporary, metadata={"made_of": digest})
    return images


def _make(
    teacher: nn.Module,
    run: RunDirectory,
    settings: SynthesisSettings,
    count: int,
    *,
    seed: int,
    device: torch.device,
) -> NDArray[np.uint8]:
    """Make them, by seeds that no run uses."""
    from mimiq_calib.randomness import piece_generator
    from mimiq_calib.synthesis.sources import ShardRequest, make_shard, steps_of_shard

    starts = range(0, count, settings.batch_size)
    shards: list[NDArray[np.uint8]] = []
    with progress_bar(
        f"unseen {settings.source}", len(starts) * steps_of_shard(settings)
    ) as advance:
        for piece, first in enumerate(starts):
            size = min(settings.batch_size, count - first)
            generator = piece_generator(seed, f"{STAGE} {settings.source}", piece)
            batch = make_shard(
                teacher,
                settings,
                run.manifest.preprocessing,
                ShardRequest(first, size, generator),
                num_classes=run.manifest.model.num_classes,
                device=device,
                advance=advance,
            )
            shards.append(batch.images.numpy())
    return np.concatenate(shards)
