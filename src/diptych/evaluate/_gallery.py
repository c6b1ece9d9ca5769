"""A gallery of retrieval: queries with their best answers as small pictures, successes and failures side by side.

Builds the plain structure of a run's ``gallery.json``, which the report draws. Which queries are shown depends on the
source and the model only, never on chance. It scores nothing anew but the shown queries, and draws no page.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from diptych.errors import RecordError
from diptych.evaluate._encode import Records
from diptych.evaluate._scores import ranks, top_k
from diptych.image import decode_image

if TYPE_CHECKING:
    from diptych.evaluate.retrieval import RetrievalResult
    from diptych.evaluate.zeroshot import ZeroshotResult

CONSIDERED = 512  # queries looked at: enough to find failures of a good model, cheap beside a full evaluation


def gallery(
    result: RetrievalResult, source: Records, *, queries: int = 12, hits: int = 8, thumbnail: int = 96, title: str = ""
) -> list[dict[str, Any]]:
    """Return two parts, pictures found by caption and captions found by picture, as ``gallery.json`` lists them.

    ``queries`` rows, half as many in the second part: about half with the right answer in the first place, a quarter with
    it further down, a quarter without it, best first. ``hits`` answers each; pictures at most ``thumbnail`` pixels wide
    and high, as data URIs.
    A row also says the ``rank`` of its best right answer and, where that is not among the hits, the ``answer`` itself.
    ``source`` is the one that was evaluated. Pictures that cannot be decoded any more are left out as None.
    """
    after = f" · {title}" if title else ""
    owner = result.text_to_image
    caption, picture = _captions(result), _pictures(result, source, thumbnail)

    chosen = _spread(len(owner), CONSIDERED)
    own = owner[chosen][:, None]
    by_text = _rows(result.text_features[chosen], result.image_features, own, (queries, hits))
    text_rows = [_row(caption(int(chosen[q])), picture, found) for q, found in by_text]

    with_text = owner.unique()
    chosen = with_text[_spread(len(with_text), CONSIDERED)]
    own = _own_texts(owner, chosen)
    few = (queries + 1) // 2  # captions take more room on a page than pictures
    by_image = _rows(result.image_features[chosen], result.text_features, own, (few, hits))
    image_rows = [_row(picture(int(chosen[q])), caption, found) for q, found in by_image]
    return [
        {"title": f"Pictures found by caption{after}", "rows": text_rows},
        {"title": f"Captions found by picture{after}", "rows": image_rows},
    ]


def mistakes(
    result: ZeroshotResult, source: Records, *, rows: int = 12, thumbnail: int = 96, title: str = ""
) -> list[dict[str, Any]]:
    """Return one part: a picture of each of the most frequent confusions, the surest mistake of its kind, and the answers.

    Empty when every picture was named right. Ranks count among all classes only as far as the five kept answers go.
    """
    after = f" · {title}" if title else ""
    found = []
    for true, said, count in result.worst_confusions(rows):
        alike = ((result.labels == true) & (result.answers[:, 0] == said)).nonzero()[:, 0]
        place = int(alike[result.scores[alike, 0].argmax()])
        record = source.record(result.indices[place])
        try:
            picture = data_uri(decode_image(record.image, record.key), thumbnail)
        except RecordError:
            picture = None
        answers = result.answers[place].tolist()
        hits = [
            {"text": result.classes[answer], "image": None, "correct": answer == true, "score": round(score, 4)}
            for answer, score in zip(answers, result.scores[place].tolist(), strict=True)
        ]
        times = "once" if count == 1 else f"{count} times"
        words = f"{result.classes[true]}, called {result.classes[said]} {times}"
        row = {"query": {"text": words, "image": picture}, "rank": answers.index(true) + 1 if true in answers else 0}
        missed = {} if true in answers else {"answer": {"text": result.classes[true], "image": None}}
        found.append(row | {"hits": hits} | missed)
    return [{"title": f"Most frequent confusions{after}", "rows": found}] if found else []


def _captions(result: RetrievalResult) -> Any:
    return lambda place: {"text": result.pictures.captions[place], "image": None}


def _pictures(result: RetrievalResult, source: Records, thumbnail: int) -> Any:
    @cache
    def picture(place: int) -> dict[str, str | None]:
        record = source.record(result.pictures.indices[place])
        try:
            return {"text": None, "image": data_uri(decode_image(record.image, record.key), thumbnail)}
        except RecordError:
            return {"text": None, "image": None}

    return picture


def _row(query: dict[str, Any], answer: Any, found: dict[str, Any]) -> dict[str, Any]:
    """One row of the gallery; ``answer`` turns an index into a text or a picture."""
    row = {
        "query": query,
        "rank": found["rank"],
        "hits": [{**answer(i), "correct": right, "score": score} for i, right, score in found["hits"]],
    }
    if found["missed"] is not None:
        row["answer"] = answer(found["missed"])
    return row


def _rows(queries: Tensor, candidates: Tensor, own: Tensor, size: tuple[int, int]) -> list[tuple[int, dict[str, Any]]]:
    """Return (query, what was found) for the queries to show: rank, hits (index, right or not, score), the missed answer."""
    count, hits = size
    scores, indices = top_k(queries, candidates, hits)
    places = _normal_ranks(queries, candidates, own)
    rows = []
    for query in choose(places.tolist(), count, indices.shape[1]):
        right = {index for index in own[query].tolist() if index >= 0}
        best = [
            (i, i in right, round(s, 4)) for i, s in zip(indices[query].tolist(), scores[query].tolist(), strict=True)
        ]
        missed = None if any(hit[1] for hit in best) else _best_own(queries[query], candidates, sorted(right))
        rows.append((query, {"rank": int(places[query]), "hits": best, "missed": missed}))
    return rows


def _normal_ranks(queries: Tensor, candidates: Tensor, own: Tensor) -> Tensor:
    normal = torch.nn.functional.normalize
    return ranks(normal(queries, dim=-1), normal(candidates, dim=-1), own)


def _best_own(query: Tensor, candidates: Tensor, own: list[int]) -> int:
    return own[int(top_k(query[None], candidates[own], 1)[1])]


def choose(places: Sequence[int], count: int, hits: int) -> list[int]:
    """Pick queries by the rank of their right answer: half first, a quarter among the hits, a quarter missed; best first.

    Each kind is spread evenly over the queries; what one kind lacks, the others fill.
    """
    first = [q for q, place in enumerate(places) if place == 1]
    near = [q for q, place in enumerate(places) if 1 < place <= hits]
    missed = [q for q, place in enumerate(places) if place > hits]
    count = min(count, len(places))
    shares = [min(len(first), count - 2 * (count // 4)), min(len(near), count // 4), min(len(missed), count // 4)]
    for kind, queries in enumerate((first, near, missed)):
        shares[kind] += min(len(queries) - shares[kind], count - sum(shares))
    picked = [
        queries[i]
        for queries, share in zip((first, near, missed), shares, strict=True)
        for i in _spread(len(queries), share).tolist()
    ]
    return sorted(picked, key=lambda query: (places[query], query))


def _spread(total: int, count: int) -> Tensor:
    """At most ``count`` indices spread evenly over 0..total-1."""
    count = min(total, count)
    return torch.arange(count) * total // max(count, 1)


def _own_texts(owner: Tensor, images: Tensor) -> Tensor:
    """Indices of the texts of each named image, [len(images), most], filled up with -1."""
    lists = [(owner == image).nonzero()[:, 0] for image in images]
    return torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1)


def data_uri(image: Image.Image, thumbnail: int) -> str:
    """Return the picture, at most ``thumbnail`` pixels wide and high, as a ``data:`` address.

    A picture that is small already (an icon, an emoji) stays as it is, without loss; a photograph becomes a WebP, or a
    JPEG where this Pillow has no WebP.
    """
    image = image.convert("RGB")
    small = max(image.size) <= thumbnail
    if not small:
        image.thumbnail((thumbnail, thumbnail), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    if "WEBP" in _encoders():
        image.save(file, "WEBP", lossless=small, quality=80, method=4)
        kind = "webp"
    elif small:
        image.save(file, "PNG", optimize=True)
        kind = "png"
    else:
        image.save(file, "JPEG", quality=85)
        kind = "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


@cache
def _encoders() -> frozenset[str]:
    Image.init()
    return frozenset(Image.SAVE)
