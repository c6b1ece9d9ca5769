"""Losses in NumPy of SLIP, DeCLIP and DeFILIP: several views, heads, masked tokens, a queue, token-wise similarities."""

import numpy as np
import torch

from .references import _log_sum, _unit, clip


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


def _mapped(tokens, layer):
    """Tokens [B, N, W] through a linear layer, each of unit length."""
    mapped = tokens.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
    return mapped / np.linalg.norm(mapped, axis=2, keepdims=True)


def token_wise(patches, texts, top_k, scale):
    """FILIP's loss of lists of unit tokens, one [N, E] a pair: both ways against the tokens that stand for each pair."""
    own = [some @ others.T for some, others in zip(patches, texts, strict=True)]
    chosen = [
        [
            item[np.argsort(-similar.sum(axis=axis), kind="stable")[:top_k]]
            for item, similar in zip(side, own, strict=True)
        ]
        for side, axis in ((texts, 0), (patches, 1))
    ]
    loss = 0.0
    for rows, columns in ((patches, chosen[0]), (texts, chosen[1])):
        logits = scale * np.array([[(row @ column.T).max(axis=1).mean() for column in columns] for row in rows])
        loss += float((_log_sum(logits, 1) - np.diag(logits)).mean()) / 2
    return loss


def defilip(objective, batch, image, text):
    """DeCLIP, and FILIP's loss between the first views, or the mean over all pairs of views."""
    config, model = objective.config, objective.model
    ids = torch.stack([batch.tokens[0] if batch.masked is None else batch.masked.tokens, *batch.tokens[1:]])
    if config.compat:
        ids = torch.nn.functional.pad(ids, (0, model.config.text.context_length - ids.shape[2]))
    count = 2 if config.dense_aug else 1
    with torch.no_grad():
        patches = [
            _mapped(model.image(item, return_tokens=True).tokens, objective.maps.image) for item in batch.images[:count]
        ]
        texts = [
            _mapped(model.text(item, length, return_tokens=True).tokens, objective.maps.text)
            for item, length in zip(ids[:count], batch.lengths, strict=False)
        ]
    if not config.compat:
        texts = [
            [item[:length] for item, length in zip(view, lengths.tolist(), strict=True)]
            for view, lengths in zip(texts, batch.lengths, strict=False)
        ]
    scale = np.exp(objective.logit_scale_dense.item())
    dense = [token_wise(list(some), list(others), config.top_k, scale) for some in patches for others in texts]
    return {**declip(objective, batch, image, text), "dense": config.dense_weight * float(np.mean(dense))}
