"""Every file that other programs write beside weights: who reads it here, or what it means that nobody does.

One table. A file that may change features and is not read is named in one line when the folder is opened; so is a file that the
table does not know. Nothing is decided here but what to say.
"""

from __future__ import annotations

import json
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple


class Beside(NamedTuple):
    """A file beside weights: its name (an fnmatch pattern), who writes it, and who reads it here or why nobody has to."""

    name: str
    writer: str
    read: str


TABLE = (
    Beside("open_clip_config.json", "open_clip", "architecture, activation, preprocessing"),
    Beside("config.json", "transformers, PaddleMIX", "architecture, activation, special ids"),
    Beside("preprocessor_config.json", "transformers", "preprocessing of images"),
    Beside("processor_config.json", "transformers", "preprocessing of images, where it holds an image_processor"),
    Beside("tokenizer.json", "tokenizers", "the vocabulary, merges and normalization of texts"),
    Beside("tokenizer_config.json", "transformers", "start, end and padding token"),
    Beside("special_tokens_map.json", "transformers", "start, end and padding token"),
    Beside("added_tokens.json", "transformers", "tokens after the vocabulary"),
    Beside("vocab.json", "transformers", "the vocabulary, with merges.txt"),
    Beside("merges.txt", "transformers", "merges of the vocabulary"),
    Beside("vocab.txt", "transformers", "BERT's word pieces (CLIPA)"),
    Beside("spiece.model", "SigLIP", "the vocabulary"),
    Beside("tokenizer.model", "Gemma", "the vocabulary"),
    Beside("*.index.json", "transformers", "the list of shards"),
    Beside("modules.json", "sentence-transformers", "where the CLIP lies, and that nothing follows it"),
    Beside("config_sentence_transformers.json", "sentence-transformers", "not needed, unless it has a default prompt"),
    Beside(
        "sentence_bert_config.json",
        "sentence-transformers",
        "not needed: texts are as long as the text tower's context",
    ),
    Beside("adapter_config.json", "peft", "an adapter alone is merged into the base that it names"),
    Beside("adapter_model.*", "peft", "plain LoRA, merged into its base; beside whole weights it is named"),
    Beside("generation_config.json", "transformers", "not needed: a CLIP generates nothing"),
    Beside("training_args.bin", "transformers", "not needed to run the model"),
    Beside("trainer_state.json", "transformers", "not needed to run the model"),
    Beside("optimizer*", "trainers", "not needed to run the model"),
    Beside("scheduler*", "trainers", "not needed to run the model"),
    Beside("scaler*", "trainers", "not needed to run the model"),
    Beside("rng_state*", "trainers", "not needed to run the model"),
    Beside("random_states*", "accelerate", "not needed to run the model"),
    Beside("all_results.json", "transformers", "scores"),
    Beside("*_results.json", "transformers", "scores"),
    Beside("chat_template.*", "transformers", "not needed: a CLIP does not chat"),
    Beside("config.toml", "Diptych", "the options of the run; the architecture is in the weights"),
    Beside("metrics.jsonl", "Diptych", "the log of the run"),
    Beside("results.json", "Diptych", "scores"),
    Beside("gallery.json", "Diptych", "pictures of the report"),
    Beside("predictions.jsonl", "Diptych", "outcomes"),
    Beside("views.png", "Diptych", "the sheet of views of the report"),
    Beside("bad_samples*", "Diptych", "the list of bad samples"),
    Beside("tf_model.h5", "TensorFlow", "weights of another framework"),
    Beside("flax_model.msgpack", "Flax", "weights of another framework"),
)
TELLING = (".json", ".model", ".h5", ".msgpack", ".onnx")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
PROMPTS = "config_sentence_transformers.json"


def known(name: str) -> bool:
    """Whether the table has a file of this name."""
    return any(fnmatchcase(name, entry.name) for entry in TABLE)


def remarks_on(folder: Path) -> tuple[str, ...]:
    """Lines on files of a folder of weights that are not read, though they may matter."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    lines = []
    adapters = [name for name in names if name in ADAPTERS]
    if adapters:
        lines.append(f"{folder}: the adapter beside the weights ({adapters[0]}) is not applied; merge it first (peft).")
    if PROMPTS in names and (prompt := _default_prompt(folder / PROMPTS)):
        lines.append(f"{folder}: {PROMPTS} puts {prompt!r} before each text; Diptych does not.")
    unknown = [name for name in names if name.endswith(TELLING) and not known(name)]
    if unknown:
        lines.append(f"{folder}: not read, since Diptych does not know what it is: {', '.join(unknown[:10])}.")
    return tuple(lines)


def _default_prompt(path: Path) -> str:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return str(values["prompts"][values["default_prompt_name"]])
    except (OSError, ValueError, KeyError, TypeError):
        return ""
