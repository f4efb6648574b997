"""Test the conversion of LoRA files: diffusers reads them back to the same video, and unsafe files are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, wan_pipeline

from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.models.lora_keys import export_lora, read_lora
from spatialalign_trl.models.wan import WanVideoModel
from spatialalign_trl.trainer.lora import default_lora_config

POWER_OF_TWO, ODD = (4, 8), (4, 12)


def saved_lora(folder: Path, rank: tuple[int, int] = POWER_OF_TWO, targets="all-linear", **options) -> WanVideoModel:
    """Save a random LoRA on every linear layer that the recipes may train, as training saves it."""
    model = WanVideoModel(wan_pipeline(), "tiny-random-wan")
    plain = default_lora_config(model, r=rank[0], alpha=rank[1], targets=targets)
    names = sorted({*plain.target_modules, "condition_embedder.time_proj", "proj_out"})
    names = names if targets == "all-linear" else sorted(plain.target_modules)
    config = LoraConfig(r=rank[0], lora_alpha=rank[1], target_modules=names, **options)
    generator = torch.Generator().manual_seed(1)
    model.transformer = get_peft_model(model.transformer, config)
    for name, parameter in model.transformer.named_parameters():
        if ".lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    model.transformer.eval()
    model.save_lora(folder)
    return model


def video(pipe: WanPipeline) -> torch.Tensor:
    return pipe(
        "a fox", num_frames=NUM_FRAMES, height=HEIGHT, width=WIDTH, num_inference_steps=2, guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0), output_type="pt", max_sequence_length=16,
    ).frames  # fmt: skip


def loaded(file: Path) -> WanPipeline:
    pipe = wan_pipeline()
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(str(file.parent), weight_name=file.name)
    assert pipe.get_active_adapters()
    # safetensors maps the file, and BLAS rounds differently if the memory is not aligned. That is not tested here.
    for parameter in pipe.transformer.parameters():
        parameter.data = parameter.data.clone()
    return pipe


@pytest.mark.parametrize("targets", ["all-linear", None])
def test_diffusers_reads_the_comfyui_file_back_to_the_same_video(tmp_path, targets):
    model = saved_lora(tmp_path, targets=targets)
    file = export_lora(tmp_path, tmp_path / "comfyui.safetensors", "comfyui")
    keys = load_file(file).keys()
    assert all(key.startswith("diffusion_model.") and key.endswith(".weight") for key in keys)
    assert "diffusion_model.blocks.0.cross_attn.k.lora_A.weight" in keys
    assert "diffusion_model.text_embedding.2.lora_B.weight" in keys
    assert len(keys) == len(load_file(tmp_path / LORA_FILE))
    expected = video(model.pipeline)
    assert torch.equal(video(loaded(file)), expected)
    assert not torch.equal(video(wan_pipeline()), expected)


def test_the_original_names_are_those_of_comfyui_without_the_prefix(tmp_path):
    saved_lora(tmp_path)
    comfyui = load_file(export_lora(tmp_path, tmp_path / "c.safetensors", "comfyui"))
    original = load_file(export_lora(tmp_path, tmp_path / "o.safetensors", "original"))
    assert {f"diffusion_model.{key}" for key in original} == set(comfyui)
    assert all(torch.equal(value, comfyui[f"diffusion_model.{key}"]) for key, value in original.items())


@pytest.mark.parametrize("lora_format", ["comfyui", "original"])
@pytest.mark.parametrize(
    ("rank", "options", "atol"),
    [
        (POWER_OF_TWO, {}, 0),
        (ODD, {}, 1e-6),
        (POWER_OF_TWO, {"use_rslora": True}, 0),
        (POWER_OF_TWO, {"alpha_pattern": {"blocks.1.attn2.to_k": 2}, "rank_pattern": {"attn1.to_q": 2}}, 0),
    ],
    ids=["alpha 2r", "alpha 3r", "rank stabilised", "patterns"],
)
def test_converting_back_gives_the_same_lora(tmp_path, lora_format, rank, options, atol):
    """For any alpha, a program that ignores alpha computes what the trained model computes."""
    model = saved_lora(tmp_path, rank, **options)
    converted = export_lora(tmp_path, tmp_path / "converted.safetensors", lora_format)
    back = export_lora(converted, tmp_path / "back" / LORA_FILE, "diffusers")
    torch.testing.assert_close(video(loaded(back)), video(model.pipeline), rtol=0, atol=atol)
    expected, found = read_lora(tmp_path).modules, read_lora(back).modules
    assert expected.keys() == found.keys()
    assert all(torch.equal(a, b) for name in expected for a, b in zip(expected[name], found[name], strict=True))


def test_diffsynth_and_kohya_spellings_are_read(tmp_path):
    saved_lora(tmp_path)
    original = load_file(export_lora(tmp_path, tmp_path / "o.safetensors", "original"))
    diffsynth = {key.replace(".weight", ".default.weight"): value for key, value in original.items()}
    save_file(diffsynth, tmp_path / "diffsynth.safetensors")
    kohya = {key.replace("lora_A", "lora_down").replace("lora_B", "lora_up"): v for key, v in original.items()}
    kohya |= {f"{key.split('.lora_')[0]}.alpha": torch.tensor(8.0) for key in original}  # twice the rank
    save_file(kohya, tmp_path / "kohya.safetensors")
    expected = read_lora(tmp_path).modules
    for name, scale in (("diffsynth", 1), ("kohya", 2)):
        found = read_lora(tmp_path / f"{name}.safetensors").modules
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[module][1], scale * expected[module][1]) for module in expected)


def test_diffusers_to_diffusers_copies_the_file(tmp_path):
    saved_lora(tmp_path, ODD)
    file = export_lora(tmp_path, tmp_path / "copy.safetensors", "diffusers")
    assert file.read_bytes() == (tmp_path / LORA_FILE).read_bytes()


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_bias": True}])
def test_dora_and_biases_survive_in_the_diffusers_format(tmp_path, options):
    model = saved_lora(tmp_path, **options)
    extra = "lora_magnitude_vector" if "use_dora" in options else "lora_B.bias"
    bare = {key.removeprefix("transformer."): value for key, value in load_file(tmp_path / LORA_FILE).items()}
    bare |= {f"{key.split('.lora_')[0]}.alpha": torch.tensor(8.0) for key in bare}
    save_file(bare, tmp_path / "bare.safetensors")
    file = export_lora(tmp_path / "bare.safetensors", tmp_path / "back" / LORA_FILE, "diffusers")
    assert sum(key.endswith(extra) for key in load_file(file)) == len(read_lora(file).modules)
    torch.testing.assert_close(video(loaded(file)), video(model.pipeline), rtol=0, atol=1e-6)
    for lora_format in ("comfyui", "original"):
        with pytest.raises(ValueError, match=f"no place for .*{extra}.*--format diffusers"):
            export_lora(tmp_path / "bare.safetensors", tmp_path / "out.safetensors", lora_format)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("diffusion_model.double_blocks.0.img_attn_qkv", "not a linear layer of a Wan transformer"),
        ("lora_unet_double_blocks_0_img_attn_qkv", "not a linear layer of a Wan transformer"),
        ("double_blocks.0.img_attn_qkv", "not a linear layer of a Wan transformer"),
    ],
)
def test_names_of_unknown_code_are_not_called_diffusers(tmp_path, key, message):
    save_file(pair(key), tmp_path / "in.safetensors")
    with pytest.raises(ValueError, match=message):
        export_lora(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "diffusers")
    assert not (tmp_path / "out.safetensors").exists()


def test_other_families_keep_their_diffusers_names(tmp_path):
    name = "transformer_blocks.0.attn1.to_q"
    save_file(pair(f"base_model.model.{name}"), tmp_path / "in.safetensors")
    file = export_lora(tmp_path / "in.safetensors", tmp_path / LORA_FILE, "diffusers")
    assert set(load_file(file)) == set(pair(f"transformer.{name}"))


def test_image_to_video_modules_have_original_names(tmp_path):
    """diffusers reads `k_img`, `v_img` and `img_emb` back to the modules that they came from."""
    names = ["blocks.0.attn2.add_k_proj", "blocks.0.attn2.add_v_proj"]
    names += [f"condition_embedder.image_embedder.ff.net.{layer}" for layer in ("0.proj", "2")]
    diffusers = {key: value for name in names for key, value in pair(f"transformer.{name}").items()}
    save_file(diffusers, tmp_path / LORA_FILE)
    file = export_lora(tmp_path, tmp_path / "comfyui.safetensors", "comfyui")
    assert set(WanPipeline.lora_state_dict(load_file(file))) == set(diffusers)


def pair(module: str) -> dict[str, torch.Tensor]:
    return {f"{module}.lora_A.weight": torch.ones(2, 3), f"{module}.lora_B.weight": torch.ones(3, 2)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (pair("transformer.transformer_blocks.0.attn1.to_k"), "not a linear layer of a Wan transformer"),
        (pair("transformer.attn2.to_k"), "'attn2.to_k' is not a linear layer of a Wan transformer"),
        (pair("transformer.condition_embedder.text_embedder.linear_1"), "no transformer block"),
        ({"transformer.blocks.0.attn2.to_k.lora_A.weight": torch.ones(2, 3)}, "has A, but a LoRA has lora_A and"),
        (
            pair("transformer.blocks.0.attn2.to_k")
            | {"transformer.blocks.0.attn2.to_k.lora_magnitude_vector": torch.ones(3)},
            "no place for .*lora_magnitude_vector.*--format diffusers",
        ),
        (pair("transformer.blocks.0.attn2.to_k") | pair("transformer_2.blocks.0.attn2.to_k"), "one file per expert"),
        ({"blocks.0.attn2.to_k.weight": torch.ones(2)}, "contains no LoRA weights"),
    ],
)
def test_what_another_program_would_misread_is_refused(tmp_path, tensors, message):
    save_file(tensors, tmp_path / LORA_FILE)
    with pytest.raises(ValueError, match=message):
        export_lora(tmp_path, tmp_path / "out.safetensors", "comfyui")
    assert not (tmp_path / "out.safetensors").exists()


def test_bad_paths_and_formats_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="contains no pytorch_lora_weights.safetensors"):
        export_lora(tmp_path, tmp_path / "out.safetensors")
    with pytest.raises(FileNotFoundError, match="there is no LoRA file or folder"):
        export_lora(tmp_path / "nowhere", tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="Did you mean 'comfyui'"):
        export_lora(tmp_path, tmp_path / "out.safetensors", "comfy")
    (tmp_path / LORA_FILE).write_bytes(b"half")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        export_lora(tmp_path, tmp_path / "out.safetensors")
    with pytest.raises(ValueError, match="must end in .safetensors"):
        export_lora(tmp_path, tmp_path / "out.bin")
