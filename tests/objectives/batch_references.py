"""Losses in NumPy of objectives that look at more than pooled features: a teacher's, or tokens. They build on ``references``."""

import numpy as np
import torch

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
        their_image = _unit(teacher.image(batch.images[0]).pooled.numpy())
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


def head(layers, inputs):
    """A head of linear layers, norms and ReLU in NumPy; batch normalization by the statistics of the inputs."""
    for layer in layers:
        kind, weights = type(layer).__name__, {name: item.detach().numpy() for name, item in layer.named_parameters()}
        if kind == "Linear":
            inputs = inputs @ weights["weight"].T + weights.get("bias", 0)
        elif kind == "ReLU":
            inputs = np.maximum(inputs, 0)
        else:
            axis = 1 if kind == "LayerNorm" else 0
            deviation = np.sqrt(inputs.var(axis=axis, keepdims=True) + layer.eps)
            inputs = (inputs - inputs.mean(axis=axis, keepdims=True)) / deviation
            inputs = inputs * weights.get("weight", 1) + weights.get("bias", 0)
    return inputs


def nt_xent(first, second, temperature):
    """The textbook's NT-Xent: 2 N anchors, each against all others; its positive is the other view of its image."""
    features, count = _unit(np.concatenate([first, second])), len(first)
    loss = 0.0
    for anchor, feature in enumerate(features):
        scores = features @ feature / temperature
        others = [number for number in range(2 * count) if number != anchor]
        loss -= scores[(anchor + count) % (2 * count)] - np.log(np.exp(scores[others]).sum())
    return loss / (2 * count)


def slip(objective, batch, image, text):
    """CLIP on the first view, and NT-Xent of the head on the states of the two others."""
    config = objective.config
    with torch.no_grad():
        states = [objective.model.image(batch.images[view]).state.numpy() for view in (1, 2)]
    ssl = nt_xent(*(head(objective.head, state) for state in states), config.ssl_temperature)
    return {**clip(objective.model, image, text), "ssl": config.ssl_weight * ssl}


def _cross_entropy(rows, columns, scale):
    """Mean of the rows' cross-entropy, row i's own column being column i."""
    logits = scale * rows @ columns.T
    return float((_log_sum(logits, 1) - np.diag(logits)).mean())


def _cosine(one, other):
    return float((_unit(one) * _unit(other)).sum(axis=1).mean())


def masked_tokens(objective, batch):
    """The mean over predicted tokens of the cross-entropy of the token head's logits, all of them computed."""
    layer = objective.token_head
    with torch.no_grad():
        states = objective.model.text(batch.masked.tokens, batch.lengths[0], return_tokens=True).tokens.numpy()
    logits = states @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    losses = [
        _log_sum(logits[row, position][None], 1)[0] - logits[row, position, target]
        for (row, position), target in np.ndenumerate(batch.masked.targets.numpy())
        if target >= 0
    ]
    return float(np.mean(losses)) if losses else 0.0


def declip(objective, batch, image, text):
    """DeCLIP's four terms, with the queue as the objective holds it."""
    config, model, scale = objective.config, objective.model, np.exp(objective.model.logit_scale.item())
    tokens = [batch.tokens[0] if batch.masked is None else batch.masked.tokens, *batch.tokens[1:]]
    with torch.no_grad():
        images = [model.image(item).pooled.numpy() for item in batch.images]
        texts = [model.text(item, length).pooled.numpy() for item, length in zip(tokens, batch.lengths, strict=True)]
    losses = {"contrastive": np.mean([clip(model, one, other)["contrastive"] for one in images for other in texts])}
    if config.simsiam_weight:
        targets = [head(objective.projector, item) for item in images]
        predictions = [head(objective.predictor, item) for item in targets]
        losses["simsiam"] = -(_cosine(predictions[0], targets[1]) + _cosine(predictions[1], targets[0])) / 2
    if config.mlm_weight:
        losses["mlm"] = masked_tokens(objective, batch)
    if config.nn_weight:
        queue, parts = objective.text_queue.entries.numpy(), []
        for item in texts:
            order = np.argsort(-(_unit(item) @ queue.T), axis=1)[:, : config.nn_topk]
            neighbors = [queue[order[:, number]] for number in range(config.nn_topk)]
            parts += [_cross_entropy(_unit(view), other, scale) for view in images for other in neighbors]
        losses["nearest"] = np.mean(parts)
    weights = {"contrastive": config.contrastive_weight, "nearest": config.nn_weight, "mlm": config.mlm_weight}
    weights["simsiam"] = config.simsiam_weight
    return {name: weights[name] * float(value) for name, value in losses.items()}


FROM_BATCH = {"declip": declip, "distill": distill, "slip": slip, "superclip": superclip}
"""Those that need the objective itself and the batch beside the features."""
