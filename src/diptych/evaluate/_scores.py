"""Scores of features: retrieval ranks in both directions, what chance gives, and the best k of each query.

Two protocols. "grouped" is that of COCO and Flickr30k: any of an image's own captions counts, and its best rank is taken.
"paired" is that of open_clip's training loop: row j of the images belongs to row j of the texts only, so an image that
occurs in five rows has one right caption in each. Pure functions of tensors: no model, no files, no processes.

Order of candidates, exact for the scores as they were computed (the last bit of a product may depend on the chunk): the higher
score first; equal scores by the lower index; a score that is not a number last. So a collapsed or diverged model scores about
chance, never 100 %. Candidates of equal features have equal scores, wherever they stand: a kernel may round columns differently,
so each is multiplied once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from diptych.errors import ConfigError
from diptych.evaluate._intervals import Outcome

Protocol = Literal["grouped", "paired"]
RECALLS = (1, 5, 10)
SCORES_IN_MEMORY = 2**24  # elements of one block of the score matrix: 64 MiB in fp32


def retrieval_scores(
    image_features: Tensor,
    text_features: Tensor,
    text_to_image: Tensor | None = None,
    protocol: Protocol = "grouped",
    chunk: int = 0,
) -> dict[str, float]:
    """Score retrieval in both directions by cosine similarity.

    ``image_features`` [N, D] and ``text_features`` [M, D], normalized by this function, in float64 where given so, else in fp32;
    ``text_to_image`` int64 [M], the index of each text's image (None: row j belongs to row j); ``chunk`` queries are
    scored at a time (0: as many as fit 64 MiB). An image without a text is a candidate but not a query.

    Returns ``image_to_text_R@1``, ``_R@5``, ``_R@10`` (fractions), ``_mean_rank``, ``_median_rank`` (1 is best;
    an even count's median is rounded down, as open_clip does), the same for ``text_to_image_``, and the means of the
    three recalls: ``text_r_mean`` (of image to text), ``image_r_mean`` (of text to image) and their mean ``r_mean``.
    Raises ConfigError for shapes or indices that do not fit.
    """
    return summary(retrieval_ranks(image_features, text_features, text_to_image, protocol, chunk))


class RetrievalRanks(NamedTuple):
    """The rank of the best right answer of each query, 1 is best: of images [Q] and of texts [M].

    ``images`` int64 [Q] and ``owners`` int64 [M] say which image each query belongs to.
    """

    image_to_text: Tensor
    text_to_image: Tensor
    images: Tensor
    owners: Tensor


def retrieval_ranks(
    image_features: Tensor,
    text_features: Tensor,
    text_to_image: Tensor | None = None,
    protocol: Protocol = "grouped",
    chunk: int = 0,
) -> RetrievalRanks:
    """Rank in both directions, without the summary; arguments and errors are those of ``retrieval_scores``."""
    owner = _owners(image_features, text_features, text_to_image)
    check_protocol(protocol)
    images, texts = _normalized(image_features), _normalized(text_features)
    if protocol == "paired":
        rows = torch.arange(len(texts), device=owner.device)[:, None]
        to_text = ranks(images[owner], texts, rows, chunk=chunk)
        # Columns of the same image are copied after the product, so that they tie exactly, whatever the kernel rounds.
        return RetrievalRanks(to_text, ranks(texts, images, rows, columns=owner, chunk=chunk), owner, owner)
    queries, own = _own_texts(owner, len(images))
    to_text = ranks(images[queries], texts, own, chunk=chunk)
    return RetrievalRanks(to_text, ranks(texts, images, owner[:, None], chunk=chunk), queries, owner)


def summary(ranked: RetrievalRanks) -> dict[str, float]:
    """The scores of ranks, under the names of ``retrieval_scores``."""
    scores = _summary("image_to_text", ranked.image_to_text) | _summary("text_to_image", ranked.text_to_image)
    return scores | _recall_means(scores)


def outcomes(ranked: RetrievalRanks) -> dict[str, Outcome]:
    """Whether an own candidate of each query is among the first k, for each recall; queries of an image are a cluster."""
    sides = {
        "image_to_text": (ranked.image_to_text, ranked.images),
        "text_to_image": (ranked.text_to_image, ranked.owners),
    }
    return {
        f"{side}_R@{k}": Outcome(query_ranks.cpu() <= k, images.cpu())
        for side, (query_ranks, images) in sides.items()
        for k in RECALLS
    }


def ranks(queries: Tensor, candidates: Tensor, own: Tensor, columns: Tensor | None = None, chunk: int = 0) -> Tensor:
    """Return each query's best rank among its own candidates, int64 [Q], 1 is best.

    ``queries`` [Q, D] and ``candidates`` [C, D]; ``own`` int64 [Q, K], indices of the right candidates, filled up with
    -1; ``columns`` int64 [C'] repeats candidates by index (``own`` then counts in C'). Q x C is never held whole.
    """
    candidates, columns = _distinct(candidates, columns)
    width = len(candidates) if columns is None else len(columns)
    chunk = chunk or max(1, SCORES_IN_MEMORY // max(width, 1))
    positions = torch.arange(width, device=queries.device)
    result = [torch.zeros(0, dtype=torch.int64, device=queries.device)]
    for begin in range(0, len(queries), chunk):
        scores = _products(queries[begin : begin + chunk], candidates)
        if columns is not None:
            scores = scores[:, columns]
        mine = own[begin : begin + chunk]
        mine_scores = scores.gather(1, mine.clamp(min=0)).masked_fill(mine < 0, -math.inf)
        best = mine_scores.max(dim=1, keepdim=True).values
        first = torch.where((mine >= 0) & (mine_scores == best), mine, width).min(dim=1, keepdim=True).values
        ahead = (scores > best).sum(dim=1)
        tied = (scores >= best).sum(dim=1) - ahead > 1  # with others than itself, which is rare: counted apart
        if bool(tied.any()):
            ahead[tied] += ((scores[tied] == best[tied]) & (positions < first[tied])).sum(dim=1)
        result.append(ahead + 1)
    return torch.cat(result)


def _distinct(candidates: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Candidates without those that equal an earlier one, and ``columns`` that repeat them; both as they are where none does."""
    bits = candidates.contiguous().view(torch.int64 if candidates.dtype == torch.float64 else torch.int32).long()
    generator = torch.Generator().manual_seed(0)
    factors = torch.randint(-(1 << 62), 1 << 62, (bits.shape[1],), generator=generator).to(bits.device)
    _, group = (bits * factors).sum(dim=1).unique(return_inverse=True)
    positions = torch.arange(len(candidates), device=candidates.device)
    first = positions.new_full((len(candidates),), len(candidates)).scatter_reduce(0, group, positions, "amin")[group]
    leads = first == positions
    # Features that are not a number equal nothing, and stay; so would those that only share their sum of bits.
    if bool(leads.all()) or not bool((candidates == candidates[first]).all()):
        return candidates, columns
    repeated = (leads.cumsum(0) - 1)[first]
    return candidates[leads], repeated if columns is None else repeated[columns]


def top_k(queries: Tensor, candidates: Tensor, k: int, chunk: int = 0) -> tuple[Tensor, Tensor]:
    """Return the k best candidates of each query: cosine similarities [Q, k] and indices int64 [Q, k], best first.

    Same order as the ranks: equal scores by the lower index. k is at most the number of candidates.
    """
    queries, candidates = _normalized(queries), _normalized(candidates)
    k = min(k, len(candidates))
    chunk = chunk or max(1, SCORES_IN_MEMORY // max(len(candidates), 1))
    values, indices = [queries.new_zeros((0, k))], [torch.zeros((0, k), dtype=torch.int64, device=queries.device)]
    for begin in range(0, len(queries), chunk):
        scores = _products(queries[begin : begin + chunk], candidates)
        best, columns = best_columns(scores, k)
        values.append(best)
        indices.append(columns)
    return torch.cat(values), torch.cat(indices)


def best_columns(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each row in the order of the ranks: a full sort only for rows that tie across the k-th column."""
    if 4 * k >= scores.shape[1]:
        ordered = scores.sort(dim=1, descending=True, stable=True)
        return ordered.values[:, :k], ordered.indices[:, :k]
    columns = (
        scores.topk(k, dim=1).indices.sort(dim=1).values
    )  # by index first: the stable sort keeps that among equals
    ordered = scores.gather(1, columns).sort(dim=1, descending=True, stable=True)
    values, indices = ordered.values, columns.gather(1, ordered.indices)
    tied = (scores >= values[:, -1:]).sum(dim=1) > k
    if bool(tied.any()):
        again = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], indices[tied] = again.values[:, :k], again.indices[:, :k]
    return values, indices


def chance(
    n_images: int, n_texts: int, captions_per_image: int | Sequence[int] | None = None, protocol: Protocol = "grouped"
) -> dict[str, float]:
    """Return what features at random would score, exactly, under the names of ``retrieval_scores`` (no median rank).

    ``captions_per_image`` is one number for all, or one number per image (0: not a query); None means the even share
    ``n_texts / n_images``, rounded. Text to image: K / N. Image to text with c own captions of M: 1 - C(M-c, K) / C(M, K).
    """
    check_protocol(protocol)
    if protocol == "paired":
        counts, n_images = [1], n_texts
    elif captions_per_image is None:
        counts = [max(1, round(n_texts / max(n_images, 1)))]
    elif isinstance(captions_per_image, int):
        counts = [captions_per_image]
    else:
        counts = [count for count in captions_per_image if count > 0]
    counts = counts or [0]
    if max(counts) > n_texts:
        raise ConfigError(f"{max(counts)} captions of one image, but only {n_texts} captions in all.")
    expected: dict[str, float] = {}
    for k in RECALLS:
        hit = {c: 1.0 - _ratio_of_binomials(n_texts, c, k) for c in set(counts)}
        expected[f"image_to_text_R@{k}"] = math.fsum(hit[c] for c in counts) / len(counts)
        expected[f"text_to_image_R@{k}"] = min(1.0, k / max(n_images, 1))
    expected["image_to_text_mean_rank"] = math.fsum((n_texts + 1) / (c + 1) for c in counts) / len(counts)
    expected["text_to_image_mean_rank"] = (n_images + 1) / 2
    return expected | _recall_means(expected)


def _ratio_of_binomials(total: int, own: int, k: int) -> float:
    """C(total - own, k) / C(total, k): the chance that k draws of ``total`` hit none of ``own``."""
    if k > total - own:
        return 0.0
    return math.prod((total - own - i) / (total - i) for i in range(k))


def _products(queries: Tensor, candidates: Tensor) -> Tensor:
    # A caller may be inside autocast: ranks of bf16 products would tie by the hundred.
    with torch.autocast(queries.device.type, enabled=False):
        scores = queries @ candidates.T
    # A NaN makes a sum over it NaN, and NaN features fill a whole row or column: sums of one of each show it for the block.
    if bool((scores[:1].sum() + scores[:, :1].sum()).isfinite()):
        return scores
    return scores.nan_to_num_(nan=-math.inf, posinf=math.inf, neginf=-math.inf)


def _normalized(features: Tensor) -> Tensor:
    return functional.normalize(features if features.dtype == torch.float64 else features.float(), dim=-1)


def _summary(direction: str, query_ranks: Tensor) -> dict[str, float]:
    query_ranks = query_ranks.cpu()
    count = max(len(query_ranks), 1)
    scores = {f"{direction}_R@{k}": int((query_ranks <= k).sum()) / count for k in RECALLS}
    scores[f"{direction}_mean_rank"] = int(query_ranks.sum()) / count
    ordered = query_ranks.sort().values
    middle = int(ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) // 2 if len(ordered) else 0
    scores[f"{direction}_median_rank"] = float(middle)
    return scores


def _recall_means(scores: dict[str, float]) -> dict[str, float]:
    text = math.fsum(scores[f"image_to_text_R@{k}"] for k in RECALLS) / len(RECALLS)
    image = math.fsum(scores[f"text_to_image_R@{k}"] for k in RECALLS) / len(RECALLS)
    return {"text_r_mean": text, "image_r_mean": image, "r_mean": (text + image) / 2}


def _own_texts(owner: Tensor, n_images: int) -> tuple[Tensor, Tensor]:
    """Return the images that have texts [Q], and the indices of their texts [Q, most texts of an image], -1 where none."""
    counts = torch.bincount(owner, minlength=n_images)
    order = owner.argsort(stable=True)
    column = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner[order]]
    own = torch.full((n_images, max(1, int(counts.max()))), -1, dtype=torch.int64, device=owner.device)
    own[owner[order], column] = order
    queries = counts.nonzero()[:, 0]
    return queries, own[queries]


def _owners(images: Tensor, texts: Tensor, text_to_image: Tensor | None) -> Tensor:
    if images.ndim != 2 or texts.ndim != 2 or images.shape[1] != texts.shape[1]:
        raise ConfigError(
            f"image features {list(images.shape)} and text features {list(texts.shape)}: expected [N, D] and [M, D]."
        )
    if not len(images) or not len(texts):
        raise ConfigError(f"{len(images)} images and {len(texts)} texts: retrieval needs at least one of each.")
    if text_to_image is None:
        if len(images) != len(texts):
            raise ConfigError(f"{len(images)} images and {len(texts)} texts: give text_to_image, or equal numbers.")
        return torch.arange(len(texts), device=texts.device)
    owner = text_to_image.to(device=texts.device, dtype=torch.int64)
    if owner.shape != (len(texts),) or int(owner.min()) < 0 or int(owner.max()) >= len(images):
        raise ConfigError(
            f"text_to_image {list(owner.shape)}: expected one index in 0..{len(images) - 1} for each of {len(texts)} texts."
        )
    return owner


def check_protocol(protocol: str) -> None:
    """Raise ConfigError for a protocol that does not exist."""
    if protocol not in ("grouped", "paired"):
        raise ConfigError(f"protocol {protocol!r}: expected 'grouped' or 'paired'.")
