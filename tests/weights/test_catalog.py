"""The catalog: facts that fit the architectures, names that resolve, and a clear line where no network is."""

import json

import pytest
import torch

import diptych
from diptych import weights
from diptych.errors import WeightsError
from diptych.models import create_model
from diptych.weights import catalog, convert
from diptych.weights._catalog import entry_for, weight_file_names
from diptych.weights._locate import locate

NAMES = """CLIP-ViT-bigG-14-laion2B-39B-b160k CLIP-ViT-g-14-laion2B-s34B-b88K CLIP-ViT-H-14-laion2B-s32B-b79K
CLIP-ViT-L-14-laion2B-s32B-b82K CLIP-ViT-B-16-laion2B-s34B-b88K CLIP-ViT-B-32-laion2B-s34B-b79K
CLIP-ViT-L-14-DataComp.XL-s13B-b90K CLIP-ViT-B-16-DataComp.XL-s13B-b90K CLIP-ViT-B-32-DataComp.XL-s13B-b90K
CLIP-ViT-B-32-256x256-DataComp-s34B-b86K DFN5B-CLIP-ViT-H-14-378 DFN5B-CLIP-ViT-H-14 DFN2B-CLIP-ViT-L-14
DFN2B-CLIP-ViT-B-16"""
ZOO = NAMES.split()


def test_every_entry_fits_a_preset():
    for name, entry in catalog().items():
        config = entry.config
        assert config.name == entry.architecture
        quick = any(word in name for word in ("openai", "metaclip", "dfn2b", "dfn5b")) or name.startswith(
            "ViT-B-32/laion400m"
        )
        quick = quick and "altogether" not in name and "s39b" not in name
        quick = quick or name in ("RN50/yfcc15m", "RN50/cc12m", "RN101/yfcc15m")
        assert (config.activation == "quickgelu") == quick, name
        assert entry.license


def test_the_zoo_of_source_002_is_whole_with_its_figures():
    zoo = {entry.zoo: entry for entry in catalog().values() if entry.zoo}
    assert set(ZOO) <= set(zoo)
    assert zoo["CLIP-ViT-bigG-14-laion2B-39B-b160k"].imagenet_top1 == 80.1
    assert zoo["DFN5B-CLIP-ViT-H-14-378"].preprocess.resize_mode == "squash"
    assert zoo["CLIP-ViT-L-14-laion2B-s32B-b82K"].preprocess.mean == (0.5, 0.5, 0.5)
    assert all(zoo[name].imagenet_top1 for name in ZOO)


def test_nine_of_openai_carry_their_digests():
    openai = [entry for entry in catalog().values() if entry.tag == "openai"]
    assert len(openai) == 9
    assert all(entry.original_sha256 in entry.original and len(entry.original_sha256) == 64 for entry in openai)


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("ViT-B-32/laion2b_s34b_b79k", ""),
        ("laion2b_s34b_b79k", "ViT-B-32"),
        ("CLIP-ViT-B-32-laion2B-s34B-b79K", ""),
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", ""),
    ],
)
def test_names_resolve(name, model):
    entry = entry_for(name, model)
    assert entry is not None
    assert (entry.model, entry.tag) == ("ViT-B-32", "laion2b_s34b_b79k")


def test_openais_tag_resolves_for_the_quickgelu_name():
    assert entry_for("openai", "ViT-B-32-quickgelu") is entry_for("ViT-B-32/openai")


def test_the_listing_is_open_clips():
    assert ("ViT-B-32", "openai") in diptych.list_pretrained()
    assert len(diptych.list_pretrained()) == len(catalog())


@pytest.mark.parametrize(
    ("name", "model", "message"),
    [
        ("ViT-B-32/laion2b_s34b_b79", "", "Did you mean 'ViT-B-32/laion2b_s34b_b79k'"),
        ("openia", "ViT-B-32", "Did you mean 'openai'"),
        ("nothing-like-it", "", "hf-hub:OWNER/NAME"),
        ("some/where/model.pt", "", "no such weight file"),
    ],
)
def test_an_unknown_name_gets_a_hint(name, model, message):
    with pytest.raises(WeightsError, match=message) as caught:
        locate(name, model)
    assert "\n" not in caught.value.line


def test_without_a_network_the_message_says_which_file_to_fetch_by_hand(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    pytest.importorskip("huggingface_hub")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as caught:
        weights.load("ViT-B-32/openai")
    line = caught.value.line
    assert "mirror.example/timm/vit_base_patch32_clip_224.openai/resolve/main/open_clip_model.safetensors" in line
    assert "give that folder in place of the name" in line


@pytest.mark.heavy
def test_a_hub_library_that_has_the_file_is_used(monkeypatch, tmp_path, capsys):
    """The real call of huggingface-hub, answered from its own cache layout: no network."""
    pytest.importorskip("huggingface_hub")
    model = create_model("ViT-B-32-quickgelu", dtype=torch.bfloat16)
    weights.save(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", "openclip", tmp_path / "b")
    entry = entry_for("ViT-B-32/openai")
    home = tmp_path / "hub" / f"models--{entry.repo.replace('/', '--')}"
    snapshot = home / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("0" * 40)
    (tmp_path / "b" / weight_file_names()[0]).rename(snapshot / weight_file_names()[0])
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    loaded = weights.load("ViT-B-32/openai", precision="file")
    assert loaded.config.activation == "quickgelu"
    assert torch.equal(loaded.image.ln_post.weight, model.image.ln_post.weight)
    again, _, preprocess = diptych.create_model_and_transforms("ViT-B-32-quickgelu", "openai", precision="file")
    assert again.config.name == "ViT-B-32-quickgelu"
    assert preprocess.transform.size == 224
    # The command as it stands in open_clip's pages: the bare name is built as OpenAI trained it, and that is said.
    again, _, _ = diptych.create_model_and_transforms("ViT-B-32", "openai", precision="file")
    assert again.config == loaded.config
    assert "as ViT-B-32-quickgelu" in capsys.readouterr().err
    with pytest.raises(WeightsError, match="--model"):
        locate("openai")


@pytest.mark.heavy
def test_a_paddle_folder_named_as_in_the_zoo_takes_what_the_catalog_says(tmp_path):
    """PaddleMIX's config cannot say QuickGELU for the image tower: the four DFN models need it."""
    name = "DFN2B-CLIP-ViT-B-16"
    model = create_model("ViT-B-16-quickgelu", dtype=torch.bfloat16)
    weights.save(tmp_path / "a.safetensors", model)
    convert(tmp_path / "a.safetensors", "paddle", tmp_path / name)
    text = (tmp_path / name / "config.json").read_text().replace('"quick_gelu": true', '"quick_gelu": false')
    (tmp_path / name / "config.json").write_text(text)
    assert weights.load(tmp_path / name, precision="file").config.activation == "quickgelu"
    (tmp_path / name).rename(tmp_path / "other")
    values = json.loads(text)
    del values["preprocess_cfg"]  # PaddleMIX's own has none
    (tmp_path / "other" / "config.json").write_text(json.dumps(values))
    with pytest.raises(WeightsError, match="GELU or QuickGELU"):
        weights.load(tmp_path / "other")
    again = weights.load(tmp_path / "other", model="ViT-B-16-quickgelu", precision="file")
    assert torch.equal(again.text.projection.weight, model.text.projection.weight)
