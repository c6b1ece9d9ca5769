"""Folders that are written load here and in open_clip; and the hub's own client uploads them, to a hub played on this machine."""

import importlib
import json
import os
import subprocess
import sys

import pytest
import torch

from diptych.errors import ConfigError
from diptych.open_clip import factory
from diptych.open_clip.tokenizer import SimpleTokenizer
from tests.open_clip._hub import running_hub

# A function of the package has the module's name, in open_clip too.
ours = importlib.import_module("diptych.open_clip.push_to_hf_hub")
NAME = "tiny-test"
CARD = {
    "tags": ["clip", "zero-shot"],
    "license": "apache-2.0",
    "description": "Small.",
    "details": {"Dataset": "LAION-2B", "Model Type": "two towers", "Papers": ["one", "two"], "Stats": {"Params": 3}},
    "usage": "```python\nimport open_clip\n```",
    "comparison": "| a | b |",
    "citation": ["@a{}", "@b{}"],
}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return factory.create_model(NAME).eval()


def config():
    return factory.get_model_config(NAME)


@pytest.mark.parametrize("kind", [True, False, "both"])
def test_a_saved_folder_loads(model, tmp_path, kind):
    ours.save_for_hf(model, SimpleTokenizer(context_length=16), config(), tmp_path / "x" / "y", safe_serialization=kind)
    folder = tmp_path / "x" / "y"
    names = {path.name for path in folder.iterdir()}
    assert ("open_clip_model.safetensors" in names) == (kind in (True, "both"))
    assert ("open_clip_pytorch_model.bin" in names) == (kind in (False, "both"))
    loaded = factory.create_model(f"local-dir:{folder}")
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


def test_a_saved_folder_loads_in_open_clip(peer, model, tmp_path):
    ours.save_for_hf(model, SimpleTokenizer(), config(), tmp_path)
    theirs = peer.create_model(f"local-dir:{tmp_path}")
    state = theirs.state_dict()
    assert all(
        torch.equal(tensor, model.state_dict()[name]) for name, tensor in state.items() if "attn_mask" not in name
    )
    written = json.loads((tmp_path / "open_clip_config.json").read_text())
    assert written["preprocess_cfg"]["mean"] == list(theirs.visual.image_mean)


@pytest.mark.filterwarnings("ignore")
def test_the_saved_tokenizer_is_clips_in_transformers(tmp_path, model):
    transformers = pytest.importorskip("transformers")
    own = SimpleTokenizer(context_length=20)
    ours.save_for_hf(model, own, config(), tmp_path, skip_weights=True)
    assert not list(tmp_path.glob("*model*"))
    theirs = transformers.CLIPTokenizer.from_pretrained(str(tmp_path))
    assert theirs.model_max_length == 20
    for text in ("a photo of a cat", "it's 12 Dogs!", "東京 naïve"):
        assert theirs(text).input_ids[1:-1] == own.encode(text)
        assert (theirs(text).input_ids[0], theirs(text).input_ids[-1]) == (own.sot_token_id, own.eot_token_id)


@pytest.mark.parametrize("card", [{}, CARD, {"tags": (), "details": {}}, {"citation": "@c{}"}], ids=len)
def test_cards_are_open_clips(peer, card):
    assert ours.generate_readme(dict(card), "m") == peer.push_to_hf_hub.__globals__["generate_readme"](dict(card), "m")


def test_a_card_is_a_header_and_sections():
    before = json.dumps(CARD)
    text = ours.generate_readme(CARD, "my-model")
    assert json.dumps(CARD) == before
    assert text.startswith("---\ntags:\n- clip\n- zero-shot\nlibrary_name: open_clip\n")
    assert "datasets:\n- laion-2b\n---\n# Model card for my-model\n" in text
    assert "- **Papers:**\n  - one\n  - two\n" in text


PUSH = """
import json, sys
from diptych import open_clip
import importlib
from diptych.open_clip import factory
p = importlib.import_module('diptych.open_clip.push_to_hf_hub')
model = factory.create_model("tiny-test", pretrained=sys.argv[1])
card = json.loads(sys.argv[2])
info = p.push_to_hf_hub(model, factory.get_tokenizer("tiny-test"), factory.get_model_config("tiny-test"), "someone/x",
    commit_message="First", token="hf_secret", model_card=card)
print(info.commit_url if hasattr(info, "commit_url") else info)
"""


def run(code_or_module, hub, *arguments):
    settings = {"HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
    settings |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_HUB_OFFLINE", "HF_TOKEN")}
    command = [sys.executable, *code_or_module, *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=170, env={**environment, **settings}
    )


@pytest.fixture
def weights(model, tmp_path):
    path = tmp_path / "weights.bin"
    torch.save(model.state_dict(), path)
    return path


@pytest.mark.slow
def test_the_hubs_client_uploads_a_model(model, weights, tmp_path):
    pytest.importorskip("huggingface_hub")
    with running_hub() as hub:
        result = run(["-c", PUSH], hub, str(weights), json.dumps(CARD))
        assert result.returncode == 0, (result.stderr[-1500:], hub.requests)
        assert (hub.message, hub.created["name"]) == ("First", "x")
        assert "Bearer hf_secret" in hub.tokens
        assert hub.files["README.md"].decode() == ours.generate_readme(CARD, "x")
        folder = tmp_path / "downloaded"
        folder.mkdir()
        for name, content in hub.files.items():
            (folder / name).write_bytes(content)
        loaded = factory.create_model(f"local-dir:{folder}")
        assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())
        # A card that is there is somebody's work.
        hub.files["README.md"] = b"mine"
        assert run(["-c", PUSH], hub, str(weights), "{}").returncode == 0
        assert hub.files["README.md"] == b"mine"


@pytest.mark.heavy
def test_the_command_uploads_weights_of_a_name(weights):
    pytest.importorskip("huggingface_hub")
    with running_hub() as hub:
        command = ["-m", "diptych.open_clip.push_to_hf_hub", "--model", NAME, "--pretrained", str(weights)]
        options = ["--repo-id", "someone/x", "--image-mean", "0.5", "0.5", "0.5", "--hf-tokenizer-self"]
        result = run(command, hub, *options)
        assert result.returncode == 0, (result.stderr[-1500:], hub.requests)
        written = json.loads(hub.files["open_clip_config.json"])
        assert written["preprocess_cfg"]["mean"] == [0.5, 0.5, 0.5]
        assert written["model_cfg"]["text_cfg"]["hf_tokenizer_name"] == "someone/x"


@pytest.mark.heavy
def test_a_refusal_of_the_hub_is_one_line(weights):
    pytest.importorskip("huggingface_hub")
    with running_hub() as hub:
        hub.refused = True
        result = run(["-c", PUSH], hub, str(weights), "{}")
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "OutputError: someone/x could not be uploaded" in last
    assert "403" in last


def test_mistakes_are_one_line(model, tmp_path):
    with pytest.raises(ConfigError, match="safe_serialization"):
        ours.save_for_hf(model, SimpleTokenizer(), config(), tmp_path, safe_serialization="safe")
    with pytest.raises(ConfigError, match="tokenizer"):
        ours.save_for_hf(model, "clip", config(), tmp_path, skip_weights=True)
    with pytest.raises(ConfigError, match="get_model_config"):
        ours.save_config_for_hf(model, tmp_path / "open_clip_config.json", None)
