"""A model with a vocabulary of its own is used with it, everywhere, and never with OpenAI's ids."""

import json

import pytest
import torch

from diptych import weights
from diptych.errors import WeightsError
from diptych.models import create_model
from diptych.text import get_tokenizer
from diptych.text.bpe import vocabulary
from diptych.weights import convert, tokenizer_of

from . import peers

CORPUS = ["two dogs run over wet sand", "a red boat under the bridge", "children eat melons in the shade"] * 9
START, END = "<|startoftext|>", "<|endoftext|>"


def library_tokenizer(path, first=("<unk>",), last=(START, END), template=None):
    """A tokenizer.json, trained here, whose special tokens stand first or last; its size."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=190, special_tokens=list(first), end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(last))
    if template:
        ids = [(token, tokenizer.token_to_id(token)) for token in template if token != "$A"]
        tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(template), special_tokens=ids)
    tokenizer.save(str(path))
    return tokenizer


def folder_with(tmp_path, ends=None, **tokenizer_options):
    """A transformers folder with a vocabulary of its own, and its tokenizer."""
    folder = tmp_path / "own"
    folder.mkdir()
    tokenizer = library_tokenizer(folder / "tokenizer.json", **tokenizer_options)
    size = tokenizer.get_vocab_size()
    peers.clip(vocabulary=size).save_pretrained(folder)
    if ends:
        values = json.loads((folder / "config.json").read_text())
        values["text_config"] |= ends(tokenizer)
        (folder / "config.json").write_text(json.dumps(values))
    return folder, tokenizer


def test_the_folders_vocabulary_gives_the_ids(tmp_path):
    folder, theirs = folder_with(tmp_path)
    tokenizer = weights.get_tokenizer(folder)
    text = "two dogs run"
    ids = [theirs.token_to_id(START), *theirs.encode(text).ids, theirs.token_to_id(END)]
    assert tokenizer.encode(text).ids.tolist() == ids
    assert tokenizer(text)[0, : len(ids)].tolist() == ids
    assert tokenizer.vocab_size == theirs.get_vocab_size()


def test_other_special_ids_are_honored_down_to_the_features(tmp_path):
    """The end token is id 2 of many, so the largest id of a text is a word."""
    import transformers

    special = ("<unk>", "<pad>", "<stop>", "<go>")
    folder, _ = folder_with(
        tmp_path, first=special, last=(), template=("<go>", "$A", "<stop>"),
        ends=lambda _: {"bos_token_id": 3, "eos_token_id": 4, "pad_token_id": 1},
    )  # fmt: skip
    with pytest.raises(WeightsError, match="end token is 4, but the tokenizer beside it ends texts with 2"):
        weights.load(folder)
    # As transformers reads a 2, it pools the largest id: what cannot be meant is refused.
    values = json.loads((folder / "config.json").read_text())
    values["text_config"]["eos_token_id"] = 2
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="pools the largest id"):
        weights.load(folder)
    library_tokenizer(folder / "tokenizer.json", ("<unk>", "<pad>", "<go>", "<stop>"), (), ("<go>", "$A", "<stop>"))
    values["text_config"] |= {"bos_token_id": 2, "eos_token_id": 3}
    (folder / "config.json").write_text(json.dumps(values))
    ours, tokenizer = weights.load(folder), weights.get_tokenizer(folder)
    ids = tokenizer(["a red boat", "melons"])
    assert ids[:, 0].tolist() == [2, 2]
    reference = transformers.CLIPModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = peers.pooled(reference.get_text_features(input_ids=ids))
        rows = [tokenizer.encode(text) for text in ("a red boat", "melons")]
        tokens, lengths = tokenizer.pad([row.ids for row in rows], [row.length for row in rows])
        packed = ours.encode_text(tokens, lengths=lengths)
        for features in (ours.encode_text(ids), packed):
            assert (features - expected).abs().max() < 1e-5


def test_it_goes_with_the_weights_into_other_formats(tmp_path):
    folder, _ = folder_with(tmp_path)
    expected = weights.get_tokenizer(folder)(["children eat melons"])
    for to in ("diptych", "hf", "openclip"):
        convert(folder, to, tmp_path / to)
        assert torch.equal(weights.get_tokenizer(tmp_path / to)(["children eat melons"]), expected), to


def test_a_run_finds_its_vocabulary_again_from_any_of_its_files(tmp_path):
    folder, _ = folder_with(tmp_path)
    model = weights.create(*weights.choose("", str(folder)))
    run = tmp_path / "run"
    weights.save_vocabulary(model.config, folder, run)
    weights.save(run / "model.safetensors", model)
    state = {f"model.{name}": item for name, item in model.state_dict().items()}
    (run / "checkpoints").mkdir()
    parts = {"weights": state, "step_state": {}, "config": {}, "architecture": model.config.to_dict()}
    torch.save(parts, run / "checkpoints/step_00000001.pt")
    expected = weights.get_tokenizer(folder)(["a red boat"])
    for source in ("", "model.safetensors", "checkpoints", "checkpoints/step_00000001.pt"):
        again = weights.load(run / source)
        assert torch.equal(tokenizer_of(again.config, run / source)(["a red boat"]), expected), source


def test_a_vocabulary_of_another_size_or_none_at_all_is_an_error(tmp_path):
    folder, _ = folder_with(tmp_path)
    library_tokenizer(folder / "tokenizer.json", last=(START, END, *(f"<extra_{index}>" for index in range(200))))
    with pytest.raises(WeightsError, match=r"token embedding has .* rows") as caught:
        weights.load(folder)
    assert "\n" not in caught.value.line
    (folder / "tokenizer.json").unlink()
    assert weights.load(folder).config.text.tokenizer == "own"  # the images are as good as ever
    with pytest.raises(WeightsError, match="is not OpenAI's 49,408"):
        weights.get_tokenizer(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ('{"model": {}}', "no vocabulary"),
        ('{"model": {"vocab": {"a": "b"}}}', "not a vocabulary"),
    ],
)
def test_a_tokenizer_that_cannot_be_read_is_an_error(content, message, tmp_path):
    folder, _ = folder_with(tmp_path)
    (folder / "tokenizer.json").write_text(content)
    with pytest.raises(WeightsError, match=message):
        weights.get_tokenizer(folder)


def test_a_template_that_is_not_clips_is_refused(tmp_path):
    folder, _ = folder_with(tmp_path, template=("$A", END))
    with pytest.raises(WeightsError, match="not a start token, the text and an end token"):
        weights.get_tokenizer(folder)


def test_openais_vocabulary_beside_the_weights_is_openais(tmp_path):
    peers.clip().save_pretrained(tmp_path / "a")
    convert(tmp_path / "a", "hf", tmp_path / "b")
    assert (tmp_path / "b/vocab.json").is_file()
    tokenizer = weights.get_tokenizer(tmp_path / "b")
    assert tokenizer.name == "bpe"
    assert tokenizer.vocab_size == len(vocabulary().ids)


def test_a_vocabulary_of_openais_size_with_other_words_is_not_openais(tmp_path):
    weights.save(tmp_path / "a.safetensors", create_model("tiny-test"))
    convert(tmp_path / "a.safetensors", "openclip", tmp_path / "b")
    assert weights.load(tmp_path / "b").config.text.tokenizer == "bpe"
    ids = dict(vocabulary().ids)
    ids["dog</w>"], ids["cat</w>"] = ids["cat</w>"], ids["dog</w>"]
    (tmp_path / "b/vocab.json").write_text(json.dumps(ids))
    merges = sorted(vocabulary().ranks, key=vocabulary().ranks.__getitem__)
    (tmp_path / "b/merges.txt").write_text("".join(f"{first} {second}\n" for first, second in merges))
    openai, own = get_tokenizer("bpe"), weights.get_tokenizer(tmp_path / "b")
    assert own.name == "own"
    assert own.tokens("a dog and a cat") == openai.tokens("a cat and a dog")


def test_images_are_prepared_by_what_the_processor_says_too(tmp_path):
    """Newer folders hold the image processor inside of processor_config.json."""
    peers.clip().save_pretrained(tmp_path)
    inner = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "resample": 2, "size": {"shortest_edge": 48}}
    inner |= {"crop_size": {"height": 48, "width": 48}, "do_center_crop": True}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": inner, "processor_class": "CLIP"}))
    assert weights.load(tmp_path).config.preprocess.mean == (0.1, 0.2, 0.3)
