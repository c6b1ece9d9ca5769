"""The page about accelerators says of each one what its class says."""

import re

import pytest

from diptych.devices import DEVICES, Device
from tests.docs._blocks import ROOT

PAGE = (ROOT / "docs" / "accelerators.md").read_text(encoding="utf-8")


def rows(title):
    """The cells of the table under a heading, by their first cell."""
    table = re.search(rf"## {title}\n(.*?)(?:\n## |\Z)", PAGE, re.DOTALL).group(1)
    lines = [
        line.strip("|").split("|") for line in table.splitlines() if line.startswith("| `") and "brought by" not in line
    ]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells[1:]] for cells in lines}


def test_every_accelerator_has_a_row_and_no_other():
    assert set(rows("What is automatic")) == set(DEVICES.names())


@pytest.mark.parametrize("name", DEVICES.names())
def test_a_row_says_what_the_class_says(name):
    device = DEVICES.get(name)
    brought, collectives, _, layout, adamw, _, deterministic = rows("What is automatic")[name]
    assert ("variable-length" in layout) == (device.has_varlen_attention is not Device.has_varlen_attention)
    assert ("groups" in layout) == (device.text_layout is not Device.text_layout)
    assert collectives == device.backend
    assert adamw == ("fused" if device.fused_adamw else "foreach")
    assert deterministic.startswith("refused") == (not device.deterministic)
    assert (device.plugin or "torch") in brought
