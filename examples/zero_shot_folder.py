"""Classify a folder of images with class names alone: no training, no labels.

    python examples/zero_shot_folder.py photos --weights runs/demo --classes "red square" "dog face" "pizza"

Without ``--classes`` the folder's own class folders (photos/dog/1.jpg, ...) give the names, and the accuracy is printed too.
One line per image: its path, the class, and how sure the model is. For many images, intervals and a report, use
``diptych evaluate --imagenet-val photos``.
"""

import argparse
from pathlib import Path

import torch

import diptych
from diptych.data import open_source
from diptych.evaluate import class_names
from diptych.image import decode_image
from diptych.weights import transforms

TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "{}")
IMAGES = {".jpg", ".jpeg", ".png", ".webp"}


def classifier(model: diptych.TwoTower, weights: str, names: tuple[str, ...]) -> torch.Tensor:
    """Unit vectors [classes, D]: the mean over templates of each class's unit text features."""
    tokenizer = diptych.get_tokenizer(weights)
    per_template = [
        model.encode_text(tokenizer([template.replace("{}", name) for name in names]), normalize=True)
        for template in TEMPLATES
    ]
    return torch.nn.functional.normalize(torch.stack(per_template).mean(dim=0), dim=-1)


@torch.no_grad()
def classify(folder: str, weights: str, names: tuple[str, ...]) -> None:
    """Print the class of every image in the folder, and the accuracy where class folders say what is right."""
    model = diptych.load(weights)
    transform = transforms(model.config)[1].transform
    vectors = classifier(model, weights, names)
    correct = count = 0
    for path in sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGES):
        image = transform(decode_image(path, path.name)).unsqueeze(0)
        scores = model.logit_scale.exp() * model.encode_image(image, normalize=True) @ vectors.T
        probability, label = scores.softmax(dim=-1).max(dim=-1)
        name = names[int(label)]
        print(f"{path}\t{name}\t{float(probability):.2f}")
        correct += name == path.parent.name.replace("_", " ")
        count += 1
    if any(path.is_dir() and path.name.replace("_", " ") in names for path in Path(folder).iterdir()):
        print(f"accuracy {correct / count:.3f} of {count} images")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--weights", required=True, help="a run, a weight file, or a name of the catalog")
    parser.add_argument("--classes", nargs="+", default=[])
    arguments = parser.parse_args()
    known = arguments.classes or class_names(open_source(arguments.folder).classes)
    classify(arguments.folder, arguments.weights, tuple(known))
