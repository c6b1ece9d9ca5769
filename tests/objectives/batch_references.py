"""Losses in NumPy of objectives that look at more than pooled features: a teacher's, or tokens. They build on ``references``."""

import numpy as np
import torch

from . import view_references as views
from .references import _log_sum, _unit, clip


def _mean_square(one, other):
    return float(((one - other) ** 2).mean())


def _softened(logits, teacher):
    targets = np.exp(teacher - _log_sum(teacher, 1)[:, None])
    return float((targets * (_log_sum(logits, 1)[:, None] - logits)).sum(axis=1).mean())


def distill(objective, batch, image, text):
    """CLIP, and 2,000 times the mean square of differences from the teacher, or the cross-entropy of both softmaxes."""
    teacher = objective.frozen()["teacher"]
    with torch.no_grad():
        live = teacher.image(batch.images[0]).pooled
        stored = objective._stored[batch.indices].double() if objective.config.distill_images == "stored" else live
        their_image = _unit(stored.numpy())
        their_text = _unit(teacher.text(batch.tokens[0], batch.lengths[0]).pooled.numpy())
    losses = clip(objective.model, image, text)
    if objective.config.distill_kind == "relation":
        own = np.exp(objective.model.logit_scale.item()) * _unit(image) @ _unit(text).T
        other = np.exp(teacher.logit_scale.item()) * their_image @ their_text.T
        return {**losses, "relation": (_softened(own, other) + _softened(own.T, other.T)) / 2}
    if objective.maps is not None:
        image, text = (
            features @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
            for features, layer in zip((image, text), objective.maps, strict=True)
        )
    distance = _mean_square(_unit(image), their_image) + _mean_square(_unit(text), their_text)
    return {**losses, "feature": 2000 * distance}


def superclip(objective, batch, image, text):
    """CLIP, and the cross-entropy of a linear layer with each caption's words, weighted by how rare they are in the batch."""
    with torch.no_grad():
        mean = objective.model.image(batch.images[0], return_tokens=True).tokens.mean(dim=1).numpy()
    logits = mean @ objective.classifier.weight.detach().numpy().T + objective.classifier.bias.detach().numpy()
    log_shares = logits - _log_sum(logits, 1)[:, None]
    captions = [
        {
            word
            for word in ids[:length]
            if word not in (49406, 49407, 1 if objective.model.logit_bias is not None else None)
        }
        for ids, length in zip(batch.tokens[0].tolist(), batch.lengths[0].tolist(), strict=True)
    ]
    loss = 0.0
    for row, words in zip(log_shares, captions, strict=True):
        weights = {c: np.log((len(captions) + 1) / (sum(c in other for other in captions) + 1)) for c in words}
        whole = sum(weights.values())
        loss -= sum(weight / whole * row[c] for c, weight in weights.items()) if whole else 0.0
    whole_loss = objective.config.superclip_weight * loss / len(captions)
    return {**clip(objective.model, image, text), "classification": whole_loss}


def _unit_tokens(tokens, layer):
    mapped = tokens.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    return [_unit(item) for item in mapped]


def _best(sums, count):
    return np.argsort(-sums, kind="stable")[:count]


def filip(objective, batch, image, text):
    """The mean over tokens of the best similarity to the other pair's chosen tokens, both ways; CLIP beside it by its weight."""
    config, model = objective.config, objective.model
    ids, lengths = batch.tokens[0], batch.lengths[0]
    if config.compat:  # masked, and padded to the whole context
        context = model.config.text.context_length
        ids = torch.nn.functional.pad(batch.masked.tokens, (0, context - ids.shape[1]))
    with torch.no_grad():
        patches = _unit_tokens(model.image(batch.images[0], return_tokens=True).tokens, objective.maps.image)
        encoded = model.text(ids, lengths, return_tokens=True)
    text = _unit(encoded.pooled.numpy())
    words = _unit_tokens(encoded.tokens, objective.maps.text)
    if not config.compat:
        words = [item[:length] for item, length in zip(words, lengths.tolist(), strict=True)]
    similar = [some @ others.T for some, others in zip(patches, words, strict=True)]
    chosen_patches = [item[_best(own.sum(axis=1), config.top_k)] for item, own in zip(patches, similar, strict=True)]
    chosen_words = [item[_best(own.sum(axis=0), config.top_k)] for item, own in zip(words, similar, strict=True)]
    loss, scale = 0.0, np.exp(objective.logit_scale_dense.item())
    for rows, columns in ((patches, chosen_words), (words, chosen_patches)):
        logits = scale * np.array([[(row @ column.T).max(axis=1).mean() for column in columns] for row in rows])
        loss += float((_log_sum(logits, 1) - np.diag(logits)).mean()) / 2
    contrastive = clip(model, image, text)["contrastive"]
    return {"dense": loss, "contrastive": config.filip_global_weight * contrastive}


FROM_BATCH = {
    "declip": views.declip,
    "defilip": views.defilip,
    "distill": distill,
    "filip": filip,
    "slip": views.slip,
    "superclip": superclip,
}
"""Those that need the objective itself and the batch beside the features."""
