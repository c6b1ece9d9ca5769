"""The mask token: one row after CLIP's vocabulary, for losses that ask for it; the end token stays where it is."""

import torch

from diptych import weights
from diptych.models import ModelNeeds, create_model, model_config

CONFIG = model_config("tiny-test")


def test_only_a_loss_that_asks_for_it_gets_a_mask_row():
    assert CONFIG.with_needs(ModelNeeds(logit_bias=-1.0)).text.vocab_size == 49408
    config = CONFIG.with_needs(ModelNeeds(mask_token=True))
    assert (config.text.vocab_size, config.text.mask_id, CONFIG.text.mask_id) == (49409, 49408, None)
    assert config.with_needs(ModelNeeds(mask_token=True)) == config
    other = model_config("tiny-test-siglip")
    assert other.with_needs(ModelNeeds(mask_token=True)) == other


def test_the_tokenizer_knows_the_mask_and_the_ends_stay():
    tokenizer = weights.tokenizer_of(CONFIG.with_needs(ModelNeeds(mask_token=True)))
    assert (tokenizer.mask_id, tokenizer.start_id, tokenizer.end_id) == (49408, 49406, 49407)
    assert weights.tokenizer_of(CONFIG).mask_id is None


def test_a_masked_text_is_pooled_at_its_end_token():
    model = create_model(CONFIG.with_needs(ModelNeeds(mask_token=True))).eval()
    tokens = torch.tensor([[49406, 49408, 320, 49407, 0, 0]])
    with torch.no_grad():
        searched, given = model.encode_text(tokens), model.encode_text(tokens, lengths=torch.tensor([4]))
    assert torch.equal(searched, given)


def test_weights_without_a_mask_get_a_row_and_keep_the_others(tmp_path):
    model = create_model(CONFIG)
    path = tmp_path / "model.safetensors"
    weights.save(path, model)
    loaded = weights.create(CONFIG, path, ModelNeeds(mask_token=True))
    table = loaded.text.token_embedding.weight
    assert table.shape[0] == 49409 and torch.equal(table[:49408], model.text.token_embedding.weight)
    assert 0.005 < table[49408].std() < 0.06
    assert loaded.config.text.mask_id == 49408
