"""What can be evaluated can be trained on: architecture and vocabulary are the weights' own, and stay with the run."""

import pytest

from diptych import weights
from diptych.commands import main
from tests.data.world import write_jsonl
from tests.weights.test_vocabulary import folder_with


def train(pairs, output, *flags):
    fixed = f"--train-data {pairs} --batch-size 4 --max-steps 1 --workers 0 --device cpu --output {output}"
    return main(["train", *fixed.split(), *map(str, flags)])


def test_a_model_of_its_own_is_trained_on_without_being_named(tmp_path, capsys):
    pytest.importorskip("transformers")
    pairs = write_jsonl(tmp_path / "pairs")
    folder, theirs = folder_with(tmp_path)
    assert train(pairs, tmp_path / "first", "--pretrained", folder) == 0
    trained = weights.load(tmp_path / "first")
    assert (trained.config.text.tokenizer, trained.config.text.vocab_size) == ("own", theirs.get_vocab_size())
    (tmp_path / "first/model.safetensors").unlink()  # as if the run had not ended
    assert train(pairs, tmp_path / "second", "--pretrained", tmp_path / "first") == 0
    assert "step_00000001.pt is taken" in capsys.readouterr().err
    ids = weights.get_tokenizer(folder)(["two dogs"])
    assert weights.get_tokenizer(tmp_path / "second")(["two dogs"]).tolist() == ids.tolist()


def test_a_name_that_contradicts_the_weights_is_an_error_that_names_no_unknown_preset(tmp_path, capsys):
    pytest.importorskip("transformers")
    pairs = write_jsonl(tmp_path / "pairs")
    folder, _ = folder_with(tmp_path)
    capsys.readouterr()
    assert train(pairs, tmp_path / "run", "--pretrained", folder, "--model", "tiny-test") == 2
    line = capsys.readouterr().err.strip()
    assert line.count("\n") == 0
    assert "leave --model out" in line
    assert train(pairs, tmp_path / "run", "--model", folder) == 2
    assert "local-dir:" in capsys.readouterr().err
