"""Records to batches: one data format per file, and one order, split, mix and resume for all of them.

A source says how many records it has and gives any one of them, still encoded. Everything else is shared: which process reads
which record (``_order``, ``_steps``, ``_loader``), decoding and tokenization (``_prepare``), batches (``_collate``). Sources
know no tokenizer, transform, batch size or rank; they know no loss either: objectives say what they want in ``Wants``.
"""

from diptych.data._base import SOURCES, Format, LeftOut, Source, SourceOptions, with_root
from diptych.data._captions import CaptionPerRecord
from diptych.data._choice import CaptionChoice
from diptych.data._collate import collate
from diptych.data._columns import OWN_GROUP, OWN_KEY
from diptych.data._fingerprint import fingerprint, spread
from diptych.data._left_out import check_left_out, say_left_out
from diptych.data._loader import Loader, TruncationStats
from diptych.data._open import (
    TRAIN_SPLITS,
    VALIDATION_SPLITS,
    ConcatSource,
    known_data,
    open_source,
    open_split,
    own_type,
)
from diptych.data._order import ORDER_VERSION, Mixture, draw, permute
from diptych.data._prepare import PRECOMPUTED_FEATURES, Prepare, build_prepare, image_id
from diptych.data._steps import START, LoaderOptions, Position
from diptych.data._unused import Opened, check_options, check_roots

__all__ = [
    "ORDER_VERSION",
    "OWN_GROUP",
    "OWN_KEY",
    "PRECOMPUTED_FEATURES",
    "SOURCES",
    "START",
    "TRAIN_SPLITS",
    "VALIDATION_SPLITS",
    "CaptionChoice",
    "CaptionPerRecord",
    "ConcatSource",
    "Format",
    "LeftOut",
    "Loader",
    "LoaderOptions",
    "Mixture",
    "Opened",
    "Position",
    "Prepare",
    "Source",
    "SourceOptions",
    "TruncationStats",
    "build_prepare",
    "check_left_out",
    "check_options",
    "check_roots",
    "collate",
    "draw",
    "fingerprint",
    "image_id",
    "known_data",
    "open_source",
    "open_split",
    "own_type",
    "permute",
    "say_left_out",
    "spread",
    "with_root",
]
