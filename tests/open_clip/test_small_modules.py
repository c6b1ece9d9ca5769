"""Poolers, tables and converters beside open_clip's; and the lines of what is not here."""

from types import SimpleNamespace

import pytest
import torch

from diptych.errors import ConfigError
from diptych.open_clip import coca_model, convert, hf_configs, hf_model, timm_model


def output_of_a_tower():
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    return SimpleNamespace(last_hidden_state=tokens), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])


def test_the_table_of_text_towers_is_open_clips(peer):
    from open_clip.hf_configs import arch_dict

    assert hf_configs.arch_dict == arch_dict


@pytest.mark.parametrize("name", ["MeanPooler", "ClsPooler", "ClsLastHiddenStatePooler"])
def test_poolers_are_open_clips(peer, name):
    from open_clip import hf_model as theirs

    assert torch.equal(getattr(hf_model, name)()(*output_of_a_tower()), getattr(theirs, name)()(*output_of_a_tower()))


def test_poolers_leave_padding_out():
    output, mask = output_of_a_tower()
    assert hf_model.MeanPooler()(output, mask).tolist() == [[4.5, 5.5, 6.5], [13.5, 14.5, 15.5]]
    assert hf_model.MaxPooler()(output, mask).tolist() == [[9, 10, 11], [15, 16, 17]]
    assert hf_model.ClsPooler()(output, mask).tolist() == [[0, 1, 2], [12, 13, 14]]
    output.pooler_output = torch.ones(2, 3)
    assert torch.equal(hf_model.ClsPooler()(output, mask), torch.ones(2, 3))
    assert hf_model.ClsPooler(use_pooler_output=False)(output, mask).tolist() == [[0, 1, 2], [12, 13, 14]]


def test_a_pooler_is_registered_by_its_name():
    class LastTokenPooler(torch.nn.Module):
        pass

    assert hf_model.register_pooler(LastTokenPooler) is LastTokenPooler
    assert hf_model._POOLERS.pop("last_token_pooler") is LastTokenPooler
    assert {"mean_pooler", "max_pooler", "cls_pooler", "cls_last_hidden_state_pooler"} <= set(hf_model._POOLERS)


def test_state_dicts_of_known_formats_stay():
    state = {"logit_scale": torch.ones(())}
    assert convert.convert_state_dict(torch.nn.Identity(), state) is state


@pytest.mark.parametrize(
    "call",
    [
        *(
            lambda name=name: convert.convert_state_dict(torch.nn.Identity(), {name: torch.ones(1)})
            for name in convert.APPLE
        ),
        lambda: convert.load_big_vision_weights(None, "weights.npz"),
        lambda: hf_model.HFTextEncoder("roberta-base", 512),
        lambda: timm_model.TimmModel("resnet50", 512),
        lambda: coca_model.CoCa(512, {}, {}, {}),
        lambda: coca_model.prepare_inputs_for_generation(None, None),
    ],
)
def test_what_is_not_here_is_one_line(call):
    with pytest.raises(ConfigError) as caught:
        call()
    assert "\n" not in str(caught.value)
