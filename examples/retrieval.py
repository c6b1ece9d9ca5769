"""Search a folder of images with a sentence, or with another image.

    python examples/retrieval.py photos "a dog on a beach" --weights runs/demo --top 5
    python examples/retrieval.py photos query.jpg --weights runs/demo

All images are encoded once, in batches; the query is compared with each of them. Prints cosine and path, best first. To
measure how well a model finds the captions of a test set, use ``diptych evaluate --val-data``.
"""

import argparse
from pathlib import Path

import torch

import diptych
from diptych.image import decode_image
from diptych.weights import transforms

IMAGES = {".jpg", ".jpeg", ".png", ".webp"}
BATCH = 64


class Index:
    """The unit features of a folder's images, fp32 [N, D], in the order of ``paths``."""

    def __init__(self, folder: str, weights: str) -> None:
        self.model = diptych.load(weights)
        self.tokenizer = diptych.get_tokenizer(weights)
        self.transform = transforms(self.model.config)[1].transform
        self.paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGES)
        batches = [self.paths[begin : begin + BATCH] for begin in range(0, len(self.paths), BATCH)]
        self.features = torch.cat([self.images(paths) for paths in batches])

    def images(self, paths: list[Path]) -> torch.Tensor:
        """Unit features [len(paths), D]."""
        pixels = torch.stack([self.transform(decode_image(path, path.name)) for path in paths])
        with torch.no_grad():
            return self.model.encode_image(pixels, normalize=True)

    def query(self, text_or_path: str) -> torch.Tensor:
        """Unit features [1, D] of an image, where there is a file of that name, else of the text."""
        if Path(text_or_path).is_file():
            return self.images([Path(text_or_path)])
        with torch.no_grad():
            return self.model.encode_text(self.tokenizer([text_or_path]), normalize=True)

    def search(self, text_or_path: str, top: int) -> list[tuple[float, Path]]:
        """The best images with their cosines, best first."""
        scores = (self.query(text_or_path) @ self.features.T)[0].topk(min(top, len(self.paths)))
        return [(value, self.paths[index]) for value, index in zip(*(item.tolist() for item in scores), strict=True)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("query", help="a sentence, or the path of an image")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--top", type=int, default=5)
    arguments = parser.parse_args()
    for score, path in Index(arguments.folder, arguments.weights).search(arguments.query, arguments.top):
        print(f"{score:+.3f}\t{path}")
