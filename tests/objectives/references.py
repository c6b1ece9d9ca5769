"""Each objective's loss in a few lines of NumPy, from pooled features of the towers: what the contract test compares with."""

import numpy as np


def _unit(features):
    return features / np.linalg.norm(features, axis=1, keepdims=True)


def _log_sum(values, axis):
    most = values.max(axis=axis, keepdims=True)
    return np.squeeze(most, axis) + np.log(np.exp(values - most).sum(axis=axis))


def clip(model, image, text):
    """CLIP: both directions' cross-entropy, averaged."""
    logits = np.exp(model.logit_scale.item()) * _unit(image) @ _unit(text).T
    own = np.diag(logits)
    return {"contrastive": float((_log_sum(logits, 1) - own).mean() + (_log_sum(logits, 0) - own).mean()) / 2}


def siglip(model, image, text):
    """SigLIP: a binary question for every image and text, summed over texts."""
    logits = np.exp(model.logit_scale.item()) * _unit(image) @ _unit(text).T + model.logit_bias.item()
    signs = 2 * np.eye(len(logits)) - 1
    return {"sigmoid": float(np.log1p(np.exp(-signs * logits)).sum() / len(logits))}


REFERENCES = {"clip": clip, "siglip": siglip}
