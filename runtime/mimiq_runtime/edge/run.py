"""Classify pictures with the model in this folder: ``python run.py PICTURE...``."""

from pathlib import Path

from mimiq_runtime.edge.bundle import open_bundle
from mimiq_runtime.edge.command import Command
from mimiq_runtime.edge.engine import load_model
from mimiq_runtime.preprocessing import model_input, read_pixels

__all__ = ["main"]


def main() -> None:
    """Check the bundle that this file lies in, and classify the pictures of the command line."""
    with Command() as command:
        bundle = open_bundle(Path(__file__).resolve().parent)  # every file has its digest
        if not command.pictures:
            return
        with load_model(bundle) as classify:
            for picture in command.pictures:
                pixels = read_pixels([picture], bundle.preprocessing)
                images = model_input(pixels, bundle.preprocessing, bundle.takes)
                command.show(bundle, picture, classify(images)[0])


if __name__ == "__main__":
    main()
