"""Which members of a tar are one sample: a picture, and the texts that have the same name but for the ending.

The rule: the ending is what follows the last dot, in any case, and must be known (a picture's, or one of ``TEXTS``); the whole
path before it is the key. So keys may hold dots, members may stand in any order, and no member ever joins one of another key. A
longer ending, ``seg.png``, is one only where --csv-img-key or --csv-caption-key names it. A sample is a key with a single picture
and at least one text, no kind twice. All others are left out and counted. Names only: no member's content is read.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from diptych.data._base import LeftOut
from diptych.data._beside import TEXTS, text_ending
from diptych.data._tar import Members
from diptych.image import image_endings

IMAGE, OTHER, HIDDEN = 0, -1, -2  # columns of a sample: the picture, then TEXTS; members of no sample are below 0
COLUMNS = 1 + len(TEXTS)
ABSENT = -1
FIRST_DOT = b"."[0]
# Why a picture (0) or a text (1) is in no sample; the advice where the shorter key is no sample either.
ALONE = ("a picture without a text of the same name", "a text without a picture of the same name")
LONGER = ("a picture with a longer ending than its key's", "a text with a longer ending than its key's")
ADVICE = (" (--csv-img-key takes an ending such as seg.png)", " (--csv-caption-key takes an ending such as blip.txt)")


class Samples(NamedTuple):
    """The samples of one archive: their keys; int64 [n, COLUMNS, 2] offset and size of each member, offset ABSENT for none."""

    keys: list[str]
    spans: np.ndarray
    left_out: tuple[LeftOut, ...]
    twice: int


class Endings:
    """Which endings are known, and of which column: the usual ones, or those that the flags name."""

    def __init__(self, image_key: str = "", caption_key: str = "") -> None:
        images = {ending.lstrip(".") for ending in image_endings()}
        wanted = image_key.lower().lstrip(".")
        self.image = wanted if wanted.rpartition(".")[2] in images else ""  # else it is a list's column
        self._column = {ending: number for number, ending in enumerate(TEXTS, start=1)}
        self._column |= dict.fromkeys({self.image} - {""} if self.image else images, IMAGE)
        self._known = images | set(TEXTS)
        named = text_ending(caption_key)
        if "." in named:  # "blip.txt" instead of "txt"
            self._column = {ending: column for ending, column in self._column.items() if ending != "txt"}
            self._column[named] = 1
        self._long = sorted((ending for ending in self._column if "." in ending), key=len, reverse=True)

    def split(self, names: Sequence[str]) -> tuple[list[str], list[int]]:
        """Key and column of each name; the key of a member of no sample is its name."""
        if self._long:
            parts = [self._parted(name) for name in names]
        else:
            parts = [name.rpartition(".")[::2] for name in names]
        columns = {ending: self._column.get(ending.lower(), OTHER) for ending in {ending for _, ending in parts}}
        return [key for key, _ in parts], [columns[ending] if key else OTHER for key, ending in parts]

    def _parted(self, name: str) -> tuple[str, str]:
        lowered = name.lower()
        for ending in self._long:
            if lowered.endswith("." + ending):
                return name[: -1 - len(ending)], ending
        key, _, ending = name.rpartition(".")
        return key, ending

    def is_known(self, name: str) -> bool:
        """Whether a picture or text has this name, wanted or not."""
        return name.rpartition(".")[2].lower() in self._known


def samples_of(members: Members, endings: Endings, shard: str) -> Samples:
    """The samples of an archive in the order in which their first members stand, and what is left out of it, by reason."""
    names, hidden = _visible(members)
    keys, columns = endings.split(names)
    column = np.array(columns, dtype=np.int64)
    column[hidden] = HIDDEN
    used = np.flatnonzero(column >= 0)
    numbers: dict[str, int] = {}
    used_keys = keys if len(used) == len(keys) else [keys[index] for index in used.tolist()]
    group = np.array([numbers.setdefault(key, len(numbers)) for key in used_keys], dtype=np.int64)
    column_used = column[used]
    group, repeated = _runs_apart(group, column_used, len(numbers))
    count = _count(group, column_used)
    whole = _whole(count)
    spans = np.full((len(count), COLUMNS, 2), ABSENT, dtype=np.int64)
    spans[group, column_used] = members.spans[used]
    spans[..., 1][spans[..., 0] == ABSENT] = 0
    first = np.full(len(count), len(names), dtype=np.int64)
    np.minimum.at(first, group, used)
    order = np.flatnonzero(whole)
    if repeated:  # the second sample of a key has a number of its own, at the end
        order = order[np.argsort(first[order], kind="stable")]
    left_out = Reasons(shard)
    if not whole.all():
        _incomplete(Grouping(names, keys, used, group, count, whole, numbers), left_out)
    _unused(names, column, endings, left_out)
    left_out.add(members.outside, "members that point outside of the archive", "../")
    return Samples([keys[index] for index in first[order].tolist()], spans[order], left_out.items(), repeated)


class Reasons:
    """What is left out, by reason, in the order of the first mention."""

    def __init__(self, shard: str = "") -> None:
        self._shard = shard
        self._items: dict[tuple[str, bool], tuple[int, str]] = {}

    def add(self, count: int, reason: str, example: str, bad: bool = True) -> None:
        """Count more of a reason; nothing for 0."""
        if count:
            before, first = self._items.get((reason, bad), (0, ""))
            self._items[reason, bad] = (
                before + count,
                first or (f"{self._shard}/{example}" if self._shard else example),
            )

    def items(self) -> tuple[LeftOut, ...]:
        """All of them."""
        return tuple(LeftOut(count, reason, example, bad) for (reason, bad), (count, example) in self._items.items())


def merged(parts: Iterable[tuple[LeftOut, ...]]) -> tuple[LeftOut, ...]:
    """What several archives leave out, equal reasons added up."""
    together = Reasons()
    for part in parts:
        for item in part:
            together.add(item.count, item.reason, item.example, item.bad)
    return together.items()


def _visible(members: Members) -> tuple[list[str], list[int]]:
    """The names without a leading ./, and the indices of hidden ones: ._x.jpg (macOS), .DS_Store, whatever begins with a dot."""
    names = members.each_name()
    starts = np.concatenate([[0], members.ends[:-1]])[: len(names)]
    starts = starts[starts < len(members.names)]
    begins = np.frombuffer(members.names, dtype=np.uint8)[starts] == FIRST_DOT
    if not begins.any() and b"/." not in members.names and b"__MACOSX" not in members.names:
        return names, []
    names = [re.sub(r"^(\./+)+", "", name) if name.startswith("./") else name for name in names]
    hidden = [
        index
        for index, name in enumerate(names)
        if name.startswith((".", "__MACOSX/")) or "/." in name or "/__MACOSX/" in name
    ]
    return names, hidden


def _count(group: np.ndarray, column: np.ndarray) -> np.ndarray:
    """int64 [groups, COLUMNS]: how many members of each kind a group has."""
    groups = int(group.max()) + 1 if len(group) else 0
    return np.bincount(group * COLUMNS + column, minlength=groups * COLUMNS).reshape(groups, COLUMNS)


def _whole(count: np.ndarray) -> np.ndarray:
    return (count[:, IMAGE] == 1) & (count[:, 1:].sum(axis=1) > 0) & (count <= 1).all(axis=1)


def _runs_apart(group: np.ndarray, column: np.ndarray, groups: int) -> tuple[np.ndarray, int]:
    """Where a key comes again as a whole sample of neighbors (shards joined into one), that is a sample of its own.

    Returns the groups with the later runs numbered from ``groups``, and how many keys that concerns.
    """
    twice = np.asarray((_count(group, column) > 1).any(axis=1))
    if not twice.any():
        return group, 0
    run = np.concatenate([[0], np.cumsum(group[1:] != group[:-1])])  # neighbors of one key
    twice[group[~_whole(_count(run, column))[run]]] = False
    of_key = np.flatnonzero(twice[group])
    first_run = np.full(groups, len(group), dtype=np.int64)
    np.minimum.at(first_run, group[of_key], run[of_key])
    later = of_key[run[of_key] != first_run[group[of_key]]]
    group = group.copy()
    group[later] = groups + np.unique(run[later], return_inverse=True)[1]
    return group, int(twice.sum())


class Grouping(NamedTuple):
    """Names and keys of all members; the ``used`` ones with their ``group``; of each group counts by kind and if it is whole."""

    names: Sequence[str]
    keys: Sequence[str]
    used: np.ndarray
    group: np.ndarray
    counts: np.ndarray
    whole: np.ndarray
    numbers: dict[str, int]


def _incomplete(grouping: Grouping, left_out: Reasons) -> None:
    """Count every key that is no sample, by why."""
    group, count, whole, numbers = grouping.group, grouping.counts, grouping.whole, grouping.numbers
    bad = np.flatnonzero(~whole[group])
    _, first = np.unique(group[bad], return_index=True)
    for position in np.sort(bad[first]).tolist():
        number, member = int(group[position]), int(grouping.used[position])
        images, texts = int(count[number, IMAGE]), int(count[number, 1:].sum())
        if images > 1:
            reason, beside = "several pictures of one key (--csv-img-key jpg chooses by the ending)", False
        elif (count[number] > 1).any():
            reason, beside = "two texts of one kind for one key", False
        else:
            shorter = next((item for item in _shorter(grouping.keys[member]) if item in numbers), None)
            column = 1 if texts else IMAGE
            beside = shorter is not None and bool(whole[numbers[shorter]])
            base, _, tail = grouping.keys[member].rpartition("/")[2].rpartition(".")
            longer = shorter is not None or (base and tail.isalpha())
            reason = LONGER[column] + ("" if beside else ADVICE[column]) if longer else ALONE[column]
        left_out.add(1, reason, grouping.names[member], bad=not beside)


def _shorter(key: str) -> list[str]:
    """The key up to each dot of its last part, the longest first."""
    base = key.rfind("/") + 1
    return [key[:dot] for dot in range(len(key) - 1, base, -1) if key[dot] == "."]


def _unused(names: Sequence[str], column: np.ndarray, endings: Endings, left_out: Reasons) -> None:
    """Count members of no sample by reason: hidden, not asked for by the flags, or of an unknown ending."""
    hidden = np.flatnonzero(column == HIDDEN)
    if len(hidden):
        left_out.add(len(hidden), "hidden members", names[int(hidden[0])], bad=False)
    others = Counter[bool]()
    examples: dict[bool, str] = {}
    for index in np.flatnonzero(column == OTHER).tolist():
        known = endings.is_known(names[index])
        others[known] += 1
        examples.setdefault(known, names[index])
    for known, number in others.items():
        reason = "pictures and texts that the flags do not ask for" if known else "members of other endings"
        left_out.add(number, reason, examples[known], bad=False)
