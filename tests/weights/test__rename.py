"""Rules: every transform gives what its comment says and undoes itself; wrong names and shapes are named."""

import pytest
import torch

from diptych.errors import WeightsError
from diptych.weights import _rename
from diptych.weights._rename import Rule, check_names, listed, same, to_ours, to_theirs

SQUARE = torch.arange(9.0).reshape(3, 3)


@pytest.mark.parametrize(
    ("name", "theirs", "ours"),
    [
        ("SAME", SQUARE, [SQUARE]),
        ("TRANSPOSED", SQUARE, [torch.tensor([[0.0, 3.0, 6.0], [1.0, 4.0, 7.0], [2.0, 5.0, 8.0]])]),
        ("STACKED", SQUARE, [SQUARE[:1], SQUARE[1:2], SQUARE[2:]]),
        ("SCALAR", torch.tensor(5.0), [torch.tensor([5.0])]),
        ("SINGLETON", torch.tensor([5.0]), [torch.tensor([5.0])]),
        ("LEADING", SQUARE[None], [SQUARE]),
        ("LEADING_TWO", SQUARE[None, :1], [SQUARE[0]]),
    ],
)
def test_a_transform_gives_ours_and_theirs(name, theirs, ours):
    transform = getattr(_rename, name)
    parts = transform.ours(theirs, len(ours))
    assert len(parts) == len(ours)
    assert all(torch.equal(part, expected) for part, expected in zip(parts, ours, strict=True))
    assert [part.shape for part in parts] == [expected.shape for expected in ours]
    back = transform.theirs(parts)
    assert torch.equal(back, theirs) and back.shape == theirs.shape


def test_a_scale_of_either_shape_is_read():
    for value in (torch.tensor(2.0), torch.tensor([2.0])):
        for transform in (_rename.SCALAR, _rename.SINGLETON):
            assert transform.ours(value, 1)[0].tolist() == [2.0]


def test_the_leaves_of_a_module():
    assert same("a.b", "c") == [Rule("a.b.weight", ("c.weight",)), Rule("a.b.bias", ("c.bias",))]
    assert same("a", "c", ("mean",)) == [Rule("a.mean", ("c.mean",))]


def test_ours_share_memory_and_absent_tensors_are_passed_over():
    rules = [Rule("x", ("a", "b", "c"), _rename.STACKED), Rule("y", ("d",)), Rule("z", ("e",))]
    tensors = {"x": SQUARE, "z": torch.ones(2), "other": torch.ones(1)}
    ours = to_ours(rules, tensors, "file")
    assert list(ours) == ["a", "b", "c", "e"]
    assert ours["b"].tolist() == [[3.0, 4.0, 5.0]]
    assert ours["b"].data_ptr() == SQUARE[1].data_ptr()
    back = to_theirs([rules[0], rules[2]], {**ours, "c": SQUARE.T[2:]})
    assert list(back) == ["x", "z"]
    assert back["x"][2].tolist() == [2.0, 5.0, 8.0] and back["x"].is_contiguous()


def test_theirs_are_contiguous():
    assert to_theirs([Rule("x", ("a",))], {"a": SQUARE.T})["x"].is_contiguous()
    assert to_theirs([Rule("x", ("a",), _rename.TRANSPOSED)], {"a": SQUARE})["x"].is_contiguous()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("x", ("a", "b"), _rename.STACKED), r"file: x of shape \[1, 3\] does not split into 2\."),
        (Rule("x", ("a",), _rename.SCALAR), r"file: x has the odd shape \[1, 3\]\."),
        (Rule("y", ("a",), _rename.LEADING_TWO), r"file: y has the odd shape \[3\]\."),
    ],
)
def test_a_shape_that_a_rule_cannot_take_is_named(rule, message):
    with pytest.raises(WeightsError, match=message):
        to_ours([rule], {"x": torch.ones(1, 3), "y": torch.ones(3)}, "file")


def test_names_that_do_not_fit_are_listed_but_for_allowed_patterns():
    check_names("file", "hf", [], [])
    check_names("file", "hf", ["a.x"], ["b"], ["a.*", "b"])
    with pytest.raises(WeightsError) as caught:
        check_names("file", "hf", ["m2", "m1", "a.x"], ["b", "A.x"], iter(["a.*"]))
    assert caught.value.line == (
        "file: the tensors do not fit the architecture (read as hf); missing: m1, m2; left over: A.x, b. "
        "If that is right, name them with allow= (--allow)."
    )
    with pytest.raises(WeightsError, match=r"hf\); left over: b\. "):
        check_names("file", "hf", [], ["b"])


def test_six_names_are_listed():
    assert listed(list("abcdef")) == "a, b, c, d, e, f"
    assert listed(list("abcdefgh")) == "a, b, c, d, e, f and 2 more"
