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


def fastclip(model, image, text):
    """FastCLIP in its first epoch, where every estimate is the value itself; rho is 6.5 where the temperature is learned."""
    scale, similarities = np.exp(model.logit_scale.item()), _unit(image) @ _unit(text).T
    parts = 0.0
    for matrix in (similarities, similarities.T):
        g = (np.exp(scale * (matrix - np.diag(matrix)[:, None])).sum(axis=1) - 1) / (len(matrix) - 1)
        parts += np.log(g).mean()
    learned = {"temperature": (6.5 + parts / 2) / scale} if model.logit_scale.requires_grad else {}
    return {"global": 2 / scale, **learned}


REFERENCES = {"clip": clip, "fastclip": fastclip, "siglip": siglip}
