# %% [markdown]
"""Which text fits which image? A notebook-like script: run it whole, or cell by cell in an editor that knows ``# %%``.

    WEIGHTS=runs/demo python examples/image_text_scores.py

It takes four emoji that ship with Diptych, in a drawing style that the demo's training never saw, and prints the
probability that the model gives to each of their names. Make ``runs/demo`` first with ``diptych demo``.
"""

# %% A model, its tokenizer and its preprocessing
import os
from pathlib import Path

import torch

import diptych
from diptych.data import open_source
from diptych.image import decode_image
from diptych.weights import transforms

WEIGHTS = os.environ.get("WEIGHTS", "runs/demo")
model = diptych.load(WEIGHTS)
tokenizer = diptych.get_tokenizer(WEIGHTS)
transform = transforms(model.config)[1].transform
print(f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters")

# %% Four images, each with its first caption
emoji = open_source(str(Path(diptych.__file__).parent / "assets" / "emoji" / "unseen_style-*.tar.gz"))
records = [emoji.record(index) for index in range(0, len(emoji), len(emoji) // 4)][:4]
images = torch.stack([transform(decode_image(record.image, record.key)) for record in records])
texts = [record.captions[0] for record in records]

# %% Features of unit length: their product is the cosine
with torch.no_grad():
    image_features = model.encode_image(images, normalize=True)  # [4, D]
    text_features = model.encode_text(tokenizer(texts), normalize=True)  # [4, D]
cosines = image_features @ text_features.T

# %% Probabilities: the learned scale makes a cosine a logit
probabilities = (model.logit_scale.exp() * cosines).softmax(dim=-1)
width = max(map(len, texts))
for text, cosine, probability in zip(texts, cosines, probabilities, strict=True):
    print(f"{text:<{width}}  cosines {cosine.numpy().round(2)}  probabilities {probability.detach().numpy().round(2)}")
