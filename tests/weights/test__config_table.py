"""Foreign configs: typed values, keys that nobody read, and sizes that survive a round trip."""

import pytest

from diptych.errors import WeightsError
from diptych.models import model_config
from diptych.weights._config_table import ConfigTable, mlp_ratio, read_json, validated


def test_getters_remove_their_key_and_null_is_absent():
    table = ConfigTable({"a": 3, "b": 2.5, "c": None, "d": {"e": 1}, "f": "x", "g": [1, 2], "h": True})
    assert (table.integer("a"), table.number("b"), table.integer("c", 7)) == (3, 2.5, 7)
    assert table.table("d").values == {"e": 1}
    assert (table.text("f"), table.integers("g"), table.flag("h")) == ("x", [1, 2], True)
    assert table.values == {}
    assert table.optional_number("a") is None and not table.flag("a") and table.flag("a", True)
    assert ConfigTable({"a": 4}).number("a") == 4.0 and ConfigTable({"a": 4}).integers("a") == [4]
    assert ConfigTable({"a": 4}).optional_number("a") == 4.0
    assert ConfigTable({"a": 0}).has("a") and not ConfigTable({"a": None}).has("a")
    assert ConfigTable({}).rgb("a", (0.1, 0.2, 0.3)) == (0.1, 0.2, 0.3)
    assert ConfigTable({"a": [1, 2, 3]}).rgb("a", (0.0, 0.0, 0.0)) == (1.0, 2.0, 3.0)


@pytest.mark.parametrize("getter", ["integer", "number", "text", "table", "integers"])
def test_a_missing_key_without_a_default_is_an_error(getter):
    with pytest.raises(KeyError, match="a"):
        getattr(ConfigTable({}), getter)("a")


@pytest.mark.parametrize(
    ("getter", "value"),
    [
        ("integer", True), ("integer", 1.0), ("integer", "1"), ("number", True), ("number", "1"), ("number", float("nan")),
        ("number", float("inf")), ("text", 1), ("table", [1]), ("integers", []), ("integers", [1, True]), ("integers", [1, "2"]),
        ("integers", 1.5),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_an_error_that_names_it(getter, value):
    with pytest.raises(ValueError, match=r"key is .*; expected"):
        getattr(ConfigTable({"key": value}), getter)("key")


@pytest.mark.parametrize("value", [[1, 2], [1, 2, 3, 4], [1, 2, "3"], [1, 2, float("nan")], "123", 1])
def test_three_numbers_are_three_numbers(value):
    with pytest.raises(ValueError, match="expected three numbers"):
        ConfigTable({"key": value}).rgb("key", (0.0, 0.0, 0.0))


def test_keys_that_ask_for_something_else_are_refused():
    ConfigTable({"a": False, "b": 0, "c": "", "d": {}, "e": [], "f": 0.0, "g": None, "ok": 1}).refuse_rest(["ok"], "x")
    with pytest.raises(WeightsError) as caught:
        ConfigTable({"f": 6, "b": 2, "a": 1, "c": "y", "d": [1], "ok": 1}).refuse_rest(["ok"], "file")
    assert caught.value.line == "file: describes a model that Diptych does not have: a = 1, b = 2, c = 'y', d = [1]."


@pytest.mark.parametrize(("hidden", "width"), [(4304, 1152), (6144, 1408), (8192, 1664), (768, 192), (100, 33), (1, 3)])
def test_a_ratio_gives_its_hidden_width_back(hidden, width):
    assert int(width * mlp_ratio(hidden, width)) == hidden


def test_json_beside_a_file(tmp_path):
    path = tmp_path / "config.json"
    assert read_json(path) == {}
    path.write_text('{"a": 1}')
    assert read_json(path) == {"a": 1}
    for text, message in (
        ("[1]", "expected a JSON object, got list"),
        ("{", "not valid JSON"),
        ("[" * 9999, "not valid"),
    ):
        path.write_text(text)
        with pytest.raises(WeightsError, match=message) as caught:
            read_json(path)
        assert "\n" not in caught.value.line


def test_a_config_whose_sizes_do_not_fit_is_a_weights_error():
    import dataclasses

    config = model_config("tiny-test")
    assert validated(config, "file") == config
    with pytest.raises(WeightsError, match=r"file.*heads"):
        validated(dataclasses.replace(config, vision=dataclasses.replace(config.vision, heads=5)), "file")
