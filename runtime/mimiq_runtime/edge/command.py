"""The command line of a bundle's ``run.py``: its options, its output, its errors."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mimiq_runtime.errors import EngineError, MimiqDeployError
from mimiq_runtime.metrics import softmax
from mimiq_runtime.printable import one_sentence, printable
from mimiq_runtime.ranking import best_classes

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

    from mimiq_runtime.edge.bundle import Bundle

__all__ = ["Command"]


class Command:
    """What was asked for, and how the answers are printed.

    Used in a ``with`` block, it turns the errors that are raised on purpose into one sentence and
    exit code 2, and prints the JSON at the end.

    Attributes:
        pictures: The pictures to classify; empty with ``--verify``.
        top: How many classes a picture.
    """

    def __init__(self, arguments: list[str] | None = None) -> None:
        parser = argparse.ArgumentParser(
            description="Classify pictures with the model in this folder; see README.md."
        )
        parser.add_argument("pictures", nargs="*", type=Path, metavar="PICTURE")
        parser.add_argument("--top", type=int, default=5, help="classes a picture (5)")
        parser.add_argument("--json", action="store_true", help="print JSON")
        parser.add_argument(
            "--verify", action="store_true", help="check the files of the bundle, and nothing more"
        )
        given = parser.parse_args(arguments)
        if bool(given.pictures) == given.verify or given.top < 1:
            parser.error("give pictures, or --verify; --top is at least 1")
        self.pictures: list[Path] = given.pictures
        self.top: int = given.top
        self._as_json: bool = given.json
        self._rows: list[dict[str, Any]] = []

    def show(self, bundle: Bundle, picture: Path, logits: NDArray[np.float32]) -> None:
        """Print the most probable classes of one picture, or keep them for the JSON.

        Args:
            bundle: Gives the names of the classes.
            picture: The file as it was given.
            logits: Array (classes,).

        Raises:
            EngineError: The logits are not finite numbers.
        """
        if not np.isfinite(logits).all():
            raise EngineError("The model gives values that are not finite numbers.")
        labels = bundle.labels or ()
        top = [
            {
                "index": index,
                "label": labels[index] if index < len(labels) else None,
                "probability": probability,
            }
            for index, probability in best_classes(softmax(logits), self.top)
        ]
        self._rows.append({"image": str(picture), "top": top})
        if not self._as_json:
            names = (f"{c['label'] or c['index']} {c['probability']:.2%}" for c in top)
            print(printable(f"{picture}: {', '.join(names)}"))

    def __enter__(self) -> Command:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if isinstance(error, MimiqDeployError):
            print(f"Error: {one_sentence(str(error))}", file=sys.stderr)
            sys.exit(error.exit_code)
        if error is None and not self.pictures:
            print("Every file is the one that was packed.")
        elif error is None and self._as_json:
            print(printable(json.dumps({"predictions": self._rows}, indent=2, ensure_ascii=False)))
