"""Fine-tune a model on a folder of images, each with its caption in a text file of the same name beside it.

    python examples/fine_tune_folder.py photos --pretrained runs/demo --output runs/photos

``photos`` holds 1.jpg and 1.txt, 2.jpg and 2.txt, ...; ``--pretrained`` takes whatever ``diptych.load`` takes, and without it
the model starts from random weights. Every other flag is one of ``diptych train`` and is passed on. Prints where the weights
and the report are.
"""

import argparse
import sys

from diptych.commands import main

# What differs from pretraining: a small learning rate, a short warm-up, and augmentation, since there are few images.
FINE_TUNING = "--lr 1e-4 --warmup 20 --epochs 5 --batch-size 32 --aug-scale 0.6 1.0 --aug-flip 0.5".split()  # noqa: SIM905


def fine_tune(folder: str, output: str, flags: list[str]) -> int:
    """Train on the folder and return the exit code of ``diptych train``; of a flag that stands twice, the last one counts."""
    return main(["train", "--train-data", folder, "--output", output, *FINE_TUNING, *flags])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="images with a .txt beside each")
    parser.add_argument("--output", default="runs/fine-tuned", help="folder for weights, checkpoints and report")
    arguments, others = parser.parse_known_args()
    sys.exit(fine_tune(arguments.folder, arguments.output, others))
