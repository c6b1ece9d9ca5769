"""Which form of texts a device takes: by what it can do, by the precision, or the one that is asked for."""

import pytest

from diptych.devices import get_device
from diptych.errors import DeviceError

from .test_devices import CHIP, Chip


@pytest.mark.parametrize(
    ("varlen", "precision", "form"),
    [(True, "bf16", "varlen"), (True, "fp32", "buckets"), (False, "bf16", "buckets"), (False, "fp32", "buckets")],
)
def test_the_form_of_texts_follows_from_what_the_device_can_do(monkeypatch, varlen, precision, form):
    monkeypatch.setattr(Chip, "has_varlen_attention", lambda self: varlen)
    chip = get_device(CHIP)
    assert chip.text_layout(precision) == form
    assert [chip.text_layout(precision, asked) for asked in ("groups", "buckets")] == ["groups", "buckets"]
    if form == "varlen":
        assert chip.text_layout(precision, "varlen") == "varlen"
        return
    with pytest.raises(DeviceError, match="half precision only; choose --precision bf16" if varlen else "is not there"):
        chip.text_layout(precision, "varlen")


def test_a_cpu_groups_texts_and_computes_any_form_for_the_asking():
    cpu = get_device("cpu")
    assert cpu.text_layout("bf16") == cpu.text_layout("fp32") == "groups"
    assert [cpu.text_layout("fp32", asked) for asked in ("groups", "varlen", "buckets")] == [
        "groups",
        "varlen",
        "buckets",
    ]
