"""Test finding and loading pipelines, and the sampling settings."""

import json
import subprocess
import sys

import pytest
import tiny_pipelines
import torch
from huggingface_hub import HfApi, constants

from spatialalign_trl.devices import default_device
from spatialalign_trl.models import SamplingSettings, WanVideoModel, load_video_model, tiny_model_path


def test_load_video_model_picks_the_adapter_of_a_folder(tmp_path):
    folder = tiny_pipelines.saved_wan(tmp_path)
    model = load_video_model(folder)
    assert type(model) is WanVideoModel
    assert model.name_or_path == folder
    assert model.device == default_device()
    if model.device.type == "cpu":
        assert model.dtype == torch.float32


def test_unknown_pipeline_classes_list_the_known_classes(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "WanPipelin"}))
    with pytest.raises(ValueError, match="'WanPipelin'.*Did you mean 'WanPipeline'.*Known: "):
        load_video_model(str(tmp_path))
    with pytest.raises(ValueError, match="WanVideoModel runs a WanPipeline"):
        WanVideoModel.from_pretrained(str(tmp_path))


def test_image_pipelines_are_refused(tmp_path):
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(ValueError, match="'StableDiffusionPipeline', and no adapter runs text-to-video pipelines"):
        load_video_model(str(tmp_path))


def test_folders_without_a_pipeline_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model_index\.json.*-Diffusers"):
        load_video_model(str(tmp_path))
    file = tmp_path / "weights.safetensors"
    file.write_bytes(b"")
    with pytest.raises(ValueError, match="is a file"):
        load_video_model(str(file))


@pytest.mark.parametrize("name", ["./no/such/folder", "/no/such/folder", "a/b/c"])
def test_missing_folders_are_named(name):
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        load_video_model(name)


def test_a_misspelt_embedded_model_is_named_before_the_hub_is_asked():
    with pytest.raises(FileNotFoundError, match="Did you mean 'tiny_rooms'. Known: tiny, tiny_rooms"):
        load_video_model("tiny_room")


def test_without_a_network_the_error_says_so():
    with pytest.raises(ConnectionError, match=r"owner/none.*not in the local cache.*hf download owner/none"):
        load_video_model("owner/none")


def test_missing_weights_name_the_model(tmp_path):
    folder = tiny_pipelines.saved_wan(tmp_path)
    next((tmp_path / "transformer").glob("*.safetensors")).unlink()
    with pytest.raises(OSError, match="has an index, but its weights could not be loaded"):
        load_video_model(folder)


def test_the_embedded_model_loads_or_its_error_names_the_remedy():
    try:
        path = tiny_model_path()
    except FileNotFoundError as error:
        assert "pretrain_tiny.py" in str(error)
        return
    model = load_video_model("tiny")
    assert model.name_or_path == "tiny"
    assert (path / "model_index.json").is_file()
    model.check_size(*[getattr(model.default_settings(), name) for name in ("num_frames", "height", "width")])


def test_importing_the_package_needs_no_torch():
    code = "import sys, spatialalign_trl.models, spatialalign_trl.rollout; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_settings_do_not_depend_on_the_type_of_a_number():
    whole = SamplingSettings(9, 16, 16, 4, 3, 5, fps=8).to_dict()
    assert json.dumps(whole) == json.dumps(SamplingSettings(9, 16, 16, 4, 3.0, 5.0, fps=8.0).to_dict())
    settings = SamplingSettings(9, 16, 16, 4, 3.0)
    assert SamplingSettings.from_dict(settings.to_dict()) == settings
    assert json.loads(json.dumps(settings.to_dict())) == settings.to_dict()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 0}, "num_frames=0:"),
        ({"height": 16.5}, "height=16.5:"),
        ({"num_inference_steps": -1}, "num_inference_steps=-1:"),
        ({"flow_shift": 0.0}, "flow_shift=0.0:"),
        ({"fps": -8}, "fps=-8:"),
    ],
)
def test_settings_out_of_range(change, message):
    values = {"num_frames": 9, "height": 16, "width": 16, "num_inference_steps": 4, "guidance_scale": 3.0}
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**{**values, **change})


def test_unknown_settings_suggest_the_nearest_name():
    with pytest.raises(ValueError, match="'frames'.*Did you mean 'num_frames'"):
        SamplingSettings.from_dict({"frames": 9})


SETTINGS = {"num_frames": 17, "height": 32, "width": 48, "num_inference_steps": 10, "guidance_scale": 3.0, "fps": 8.0}


@pytest.fixture
def published(tmp_path, loopback_client):
    """A pipeline on the Hub, with its own sampling settings on the branch `small`."""
    folder = tiny_pipelines.saved_wan(tmp_path / "pipeline")
    HfApi().create_repo("tester/wan")
    HfApi().upload_folder(folder_path=folder, repo_id="tester/wan")
    HfApi().create_branch("tester/wan", branch="small")
    data = json.dumps(SETTINGS).encode()
    HfApi().upload_file(path_or_fileobj=data, path_in_repo="spatialalign.json", repo_id="tester/wan", revision="small")
    return loopback_client


def test_a_pipeline_on_the_hub_keeps_its_sampling_settings(published, monkeypatch, caplog):
    def sizes(revision):
        settings = load_video_model("tester/wan", device="cpu", revision=revision).default_settings()
        return settings.num_frames, settings.height, settings.width, settings.num_inference_steps

    assert sizes("small") == (17, 32, 48, 10)
    assert sizes("main") == (81, 480, 832, 50)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert sizes("small") == (17, 32, 48, 10) and sizes("main") == (81, 480, 832, 50)
    assert "could not be reached" not in caplog.text  # the cache knows that main has no such file


def test_the_hub_is_asked_for_the_settings_once(published):
    model = load_video_model("tester/wan", device="cpu", revision="small")
    first = model.default_settings()
    count = len(published.requests)
    assert model.default_settings() == first and len(published.requests) == count


def test_a_pipelines_bad_settings_name_their_file(tmp_path):
    folder = tiny_pipelines.saved_wan(tmp_path)
    for content, message in ((SETTINGS | {"num_frames": "x"}, "x"), ([1], "list")):
        (tmp_path / "spatialalign.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=f"{tmp_path}/spatialalign.json: .*{message}"):
            load_video_model(folder, device="cpu").default_settings()
