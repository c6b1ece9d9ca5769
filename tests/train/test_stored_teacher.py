"""A teacher that sees each image once, before the first step: other image sizes, resume, and features that are kept."""

import pytest

from diptych.errors import ConfigError

from .runs import assert_identical, losses, run

DISTILL = ("--objective", "distill", "--max-steps", "4", "--save-every-steps", "2")


@pytest.fixture
def teacher(pairs, tmp_path):
    run(pairs, tmp_path / "teacher", "--max-steps", "1", "--force-image-size", "64")
    return str(tmp_path / "teacher")


@pytest.mark.heavy
def test_it_may_take_images_of_another_size_and_a_resumed_run_is_the_same(pairs, tmp_path, teacher, capsys):
    flags = (*DISTILL, "--distill-model", teacher)
    with pytest.raises(ConfigError, match=r"takes images of 64 pixels and tiny-test of 32.*--distill-images stored"):
        run(pairs, tmp_path / "live", *flags)
    flags += ("--distill-images", "stored")
    run(pairs, tmp_path / "whole", *flags)
    assert "the teacher sees each image once, as in evaluation" in capsys.readouterr().err
    assert not run(pairs, tmp_path / "parts", *flags, "--stop-after", "2").finished
    assert run(pairs, tmp_path / "parts", "--resume", "latest").finished
    assert_identical(tmp_path / "parts", tmp_path / "whole")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")


def test_its_features_are_read_back_from_the_cache(pairs, tmp_path, teacher, monkeypatch):
    monkeypatch.setenv("DIPTYCH_CACHE", str(tmp_path / "cache"))
    flags = (*DISTILL, "--distill-model", teacher, "--distill-images", "stored")
    run(pairs, tmp_path / "first", *flags)
    (written_file,) = (tmp_path / "cache" / "features").glob("*.safetensors")
    written = written_file.stat().st_mtime_ns
    run(pairs, tmp_path / "second", *flags)
    assert [path.stat().st_mtime_ns for path in (tmp_path / "cache" / "features").iterdir()] == [written]
    assert_identical(tmp_path / "first", tmp_path / "second")
