"""Test that LoRA files of all trainers load to the same weights, and that what is no LoRA is refused by what it is."""

from __future__ import annotations

import json
import logging
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import WanPipeline
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tiny_wan import inputs

from spatialalign_trl.models import load_video_model
from spatialalign_trl.models.lora_files import LORA_FILE
from spatialalign_trl.models.lora_names import diffusers_name, renamed
from spatialalign_trl.trainer.lora import attach_lora

RANK = 2
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


@pytest.fixture(scope="module")
def model(folder):
    return load_video_model(folder, device="cpu")


@pytest.fixture(autouse=True)
def base_again(model):
    """The model is shared, and every test must leave it as it was."""
    before = snapshot(model)
    yield
    model.unload_lora()
    for parameter in model.base_transformer.parameters():
        parameter.requires_grad_(True)
    assert same(snapshot(model), before)


def snapshot(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.base_transformer.named_parameters()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return list(first) == list(second) and all(torch.equal(first[name], second[name]) for name in first)


def is_adapted(name: str) -> bool:
    return bool(re.match(r"blocks\.\d+\.(attn|ffn)|condition_embedder\.(text|time)|proj_out", name))


@pytest.fixture(scope="module")
def pairs(model) -> Pairs:
    """`(A, B)` of rank 2 on every linear layer whose name the original code has."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: (
            torch.randn(RANK, module.in_features, generator=generator) * 0.1,
            torch.randn(module.out_features, RANK, generator=generator) * 0.1,
        )
        for name, module in model.base_transformer.named_modules()
        if isinstance(module, torch.nn.Linear) and is_adapted(name)
    }


def spelled(
    pairs: Pairs, pattern: str, sides: str = "A B", name: Callable[[str], str] = str, alpha: float | None = None
) -> dict[str, torch.Tensor]:
    """Return the weights under keys of the pattern `{module}...{side}`, with alpha keys if `alpha` is set."""
    tensors = {
        pattern.format(module=name(module), side=side): tensor.clone()
        for module, factors in pairs.items()
        for side, tensor in zip(sides.split(), factors, strict=True)
    }
    if alpha is not None:
        before = pattern.split("{module}")[0]
        tensors |= {f"{before}{name(module)}.alpha": torch.tensor(float(alpha)) for module in pairs}
    return tensors


def underscored(name: str) -> str:
    return name.replace(".", "_")


FORMATS = {
    "diffusers": ("transformer.{module}.lora_{side}.weight", "A B", str),
    "diffusers with an adapter's name": ("transformer.{module}.lora_{side}.default.weight", "A B", str),
    "diffusers, another adapter's name": ("transformer.{module}.lora_{side}.my-style_2.weight", "A B", str),
    "bare": ("{module}.lora_{side}.weight", "A B", str),
    "PEFT": ("base_model.model.{module}.lora_{side}.weight", "A B", str),
    "PEFT with an adapter's name": ("base_model.model.{module}.lora_{side}.default.weight", "A B", str),
    "PEFT inside diffusers": ("transformer.base_model.model.{module}.lora_{side}.weight", "A B", str),
    "original": ("{module}.lora_{side}.weight", "A B", renamed),
    "DiffSynth": ("{module}.lora_{side}.default.weight", "A B", renamed),
    "ComfyUI": ("diffusion_model.{module}.lora_{side}.weight", "down up", renamed),
    "ComfyUI, A and B": ("diffusion_model.{module}.lora_{side}.weight", "A B", renamed),
    "ComfyUI, diffusers' modules": ("diffusion_model.{module}.lora_{side}.weight", "A B", str),
    "ComfyUI, whole checkpoint": ("model.diffusion_model.{module}.lora_{side}.weight", "down up", renamed),
    "kohya": ("lora_unet_{module}.lora_{side}.weight", "down up", lambda name: underscored(renamed(name))),
    "kohya, diffusers' modules": ("lora_unet_{module}.lora_{side}.weight", "down up", underscored),
    "OneTrainer": ("lora_transformer_{module}.lora_{side}.weight", "down up", underscored),
    "old diffusers": ("transformer.{module}.lora.{side}.weight", "down up", str),
}


@pytest.mark.parametrize("alpha", [None, 1, 4, 3])
@pytest.mark.parametrize("name", FORMATS)
def test_every_plain_spelling_loads_to_the_same_lora(model, pairs, tmp_path, name, alpha):
    pattern, sides, rename = FORMATS[name]
    save_file(spelled(pairs, pattern, sides, rename, alpha), tmp_path / "lora.safetensors")
    model.load_lora(tmp_path / "lora.safetensors")

    loaded = model.lora_state_dict()
    expected = spelled(pairs, "{module}.lora_{side}.weight")
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in expected)
    assert not any(parameter.is_meta for parameter in model.transformer.parameters())
    assert model.lora_fit.unplaced == () and model.lora_fit.keys == len(pairs) * (2 if alpha is None else 3)
    assert scales(model) == {(RANK if alpha is None else alpha) / RANK}


def scales(model) -> set[float]:
    return {
        layer.scaling[adapter]
        for layer in model.base_transformer.modules()
        for adapter in getattr(layer, "scaling", {})
    }


def test_alpha_has_its_effect_and_stays_when_the_lora_is_trained_on_and_saved(model, folder, pairs, tmp_path):
    pattern, sides, rename = FORMATS["kohya"]
    save_file(spelled(pairs, pattern, sides, rename, alpha=1), tmp_path / "half.safetensors")
    halved = {module: (factor_a, factor_b / 2) for module, (factor_a, factor_b) in pairs.items()}
    save_file(spelled(halved, FORMATS["diffusers"][0]), tmp_path / "reference.safetensors")
    noisy, sigma, conditioning = inputs(model)
    predictions = []
    for name in ("half", "reference"):
        model.load_lora(tmp_path / f"{name}.safetensors")
        with torch.no_grad():
            predictions.append(model.predict(noisy, sigma, conditioning))
        model.unload_lora()
    assert torch.equal(*predictions)

    trained = load_video_model(folder, device="cpu")
    trained.load_lora(tmp_path / "half.safetensors")
    attach_lora(trained)
    trained.save_lora(tmp_path / "saved")
    pipe = WanPipeline.from_pretrained(folder)
    pipe.load_lora_weights(str(tmp_path / "saved"))
    with torch.no_grad():
        result = pipe.transformer(noisy, 1000 * sigma, conditioning["prompt_embeds"]).sample
    torch.testing.assert_close(result, predictions[0], rtol=0, atol=1e-6)


def test_ranks_and_alphas_may_differ_between_modules(model, pairs, tmp_path):
    tensors = {}
    expected = {}
    for index, (module, (factor_a, factor_b)) in enumerate(pairs.items()):
        rank, alpha = 1 + index % 2, 1 + index % 3
        one = {module: (factor_a[:rank], factor_b[:, :rank])}
        with_alpha = index % 4 != 3  # some keys are without
        tensors |= spelled(one, FORMATS["ComfyUI"][0], "down up", renamed, alpha if with_alpha else None)
        expected[module] = alpha / rank if with_alpha else 1.0
    save_file(tensors, tmp_path / "mixed.safetensors")
    model.load_lora(tmp_path / "mixed.safetensors")
    found = {
        name: layer.scaling for name, layer in model.base_transformer.named_modules() if hasattr(layer, "scaling")
    }
    assert {name: next(iter(scaling.values())) for name, scaling in found.items()} == expected


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}, {"lora_bias": True}])
@pytest.mark.parametrize("writer", ["PEFT", "diffusers"])
def test_what_peft_saves_loads_bit_for_bit(model, folder, tmp_path, writer, options):
    trained = load_video_model(folder, device="cpu")
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["attn2.to_k", "ffn.net.2"], rank_pattern={"ffn.net.2": 3})
    for name, value in options.items():
        setattr(config, name, value)
    trained.transformer = get_peft_model(trained.transformer, config)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in trained.transformer.named_parameters():
        if "lora_" in name:
            parameter.data = parameter.data + torch.randn(parameter.shape, generator=generator) * 0.1
    if writer == "PEFT":
        trained.transformer.save_pretrained(tmp_path)
    else:
        trained.save_lora(tmp_path)
    noisy, sigma, conditioning = inputs(model)
    model.load_lora(tmp_path)
    with torch.no_grad():
        assert torch.equal(model.predict(noisy, sigma, conditioning), trained.predict(noisy, sigma, conditioning))


def test_a_peft_file_without_its_settings_says_that_alpha_is_unknown(model, pairs, tmp_path, caplog):
    save_file(spelled(pairs, FORMATS["PEFT"][0]), tmp_path / "adapter_model.safetensors")
    with caplog.at_level(logging.WARNING):
        model.load_lora(tmp_path)
    assert "no adapter_config.json beside it, which holds alpha" in caplog.text


# What fits in part


def test_keys_without_a_place_are_counted(model, pairs, tmp_path, caplog):
    extra = {
        module: next(iter(pairs.values()))
        for module in ("blocks.0.attn2.add_k_proj", "blocks.30.attn2.to_k", "text_model.layers.0.q_proj")
    }
    save_file(spelled({**pairs, **extra}, FORMATS["diffusers"][0]), tmp_path / "more.safetensors")
    with caplog.at_level(logging.WARNING):
        model.load_lora(tmp_path / "more.safetensors")
    assert len(model.lora_fit.unplaced) == 6 and model.lora_fit.keys == 2 * len(pairs) + 6
    assert f"6 of {2 * len(pairs) + 6} keys fit nothing in this transformer" in caplog.text
    assert "blocks.0.attn2.add_k_proj" in caplog.text
    assert len(model.lora_state_dict()) == 2 * len(pairs)
    model.unload_lora()
    assert model.lora_fit is None


@pytest.mark.parametrize("name", ["ComfyUI", "kohya"])
def test_image_to_video_keys_have_no_place_in_a_text_to_video_model(model, pairs, tmp_path, name):
    some = next(iter(pairs.values()))
    extra = {module: some for module in ("blocks.0.attn2.add_k_proj", "blocks.1.attn2.add_v_proj")}
    pattern, sides, rename = FORMATS[name]
    save_file(spelled({**pairs, **extra}, pattern, sides, rename, alpha=2), tmp_path / "i2v.safetensors")
    model.load_lora(tmp_path / "i2v.safetensors")
    assert len(model.lora_fit.unplaced) == 6
    assert {"k_img", "v_img"} <= set(re.findall(r"[kv]_img", " ".join(model.lora_fit.unplaced)))


def test_a_lora_with_fewer_modules_than_its_targets_say_gets_no_others(model, pairs, tmp_path):
    """Training on from it must not add empty adapters where its targets match but it has no weights."""
    first = next(module for module in pairs if module.endswith("attn2.to_k"))
    settings = {"r": RANK, "lora_alpha": 8, "target_modules": ["attn2.to_k"]}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
    save_file(spelled({first: pairs[first]}, FORMATS["diffusers"][0]), tmp_path / LORA_FILE, metadata=metadata)
    model.load_lora(tmp_path)
    names = {f"{first}.lora_{side}.weight" for side in "AB"}
    assert set(model.lora_state_dict()) == names and scales(model) == {4}
    model.transformer = attach_lora(model)
    assert set(model.lora_state_dict()) == names and scales(model) == {4}


# What is refused, and what the model is afterwards


def damaged(tensors: dict[str, torch.Tensor], value: float) -> dict[str, torch.Tensor]:
    key = next(iter(tensors))
    broken = tensors[key].clone()
    broken[0, 0] = value
    return {**tensors, key: broken}


def without_b(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in tensors.items() if "lora_B" not in key}


K = "transformer.blocks.0.attn2.to_k"
COMFY = "diffusion_model.blocks.0.cross_attn.k"
REFUSED = {
    "nothing": (lambda t: {}, "contains no LoRA weights, but nothing"),
    "diff_b": (
        lambda t: {**t, f"{COMFY}.diff_b": torch.ones(3), "diffusion_model.blocks.0.norm3.diff": torch.ones(3)},
        r"2 of its \d+ keys are changes of whole weights, biases or norms .*diff_b",
    ),
    "LyCORIS norm": (lambda t: {**t, "lora_unet_blocks_0_norm3.w_norm": torch.ones(3)}, "w_norm"),
    "dora_scale": (lambda t: {**t, f"{COMFY}.dora_scale": torch.ones(3, 1)}, "DoRA as kohya and ComfyUI write"),
    "LoKr": (lambda t: {"lycoris_blocks_0_attn2_to_k.lokr_w1": torch.ones(2, 2)}, "no LoRA weights: .*LoKr"),
    "LoHa": (lambda t: {"lora_unet_blocks_0_cross_attn_k.hada_w1_a": torch.ones(2, 2)}, "LoHa weights"),
    "OFT": (lambda t: {"lora_unet_blocks_0_cross_attn_k.oft_blocks": torch.ones(2, 2, 2)}, "OFT weights"),
    "Tucker": (lambda t: {**t, f"{K}.lora_mid.weight": torch.ones(2, 2)}, "Tucker"),
    "whole model": (lambda t: {"blocks.0.attn2.to_k.weight": torch.ones(4, 4)}, "no LoRA weights: .*whole weights"),
    "modules_to_save": (lambda t: {**t, "transformer.proj_out.weight": torch.ones(4, 4)}, "modules_to_save"),
    "A's bias": (lambda t: {**t, f"{K}.lora_A.bias": torch.ones(2)}, "of a kind that is unknown"),
    "unknown": (lambda t: {**t, "something": torch.ones(2)}, "are no LoRA weights, such as 'something'"),
    "NaN": (lambda t: damaged(t, float("nan")), "1 of the .* values of .* are NaN or infinite"),
    "inf": (lambda t: damaged(t, float("inf")), "NaN or infinite"),
    "no B": (without_b, "has A, but a LoRA has lora_A and lora_B"),
    "alpha alone": (lambda t: {**t, "transformer.blocks.7.attn2.to_k.alpha": torch.tensor(1.0)}, "has alpha, but"),
    "alpha 0": (lambda t: {**t, f"{K}.alpha": torch.tensor(0.0)}, "alpha' is 0, which switches the LoRA off"),
    "alpha NaN": (lambda t: {**t, f"{K}.alpha": torch.tensor(float("nan"))}, "NaN or infinite"),
    "alpha table": (lambda t: {**t, f"{K}.alpha": torch.ones(3)}, "alpha' is of shape"),
    "rank 0": (
        lambda t: {f"{K}.lora_A.weight": torch.ones(0, 4), f"{K}.lora_B.weight": torch.ones(4, 0)},
        "rank of at",
    ),
    "ranks differ": (lambda t: {**t, f"{K}.lora_A.weight": torch.ones(3, 4)}, "same rank of at least 1"),
    "vectors": (lambda t: {**t, f"{K}.lora_A.weight": torch.ones(2)}, "must be .rank, inputs. and"),
    "integers": (lambda t: {**t, f"{K}.lora_A.weight": torch.ones(2, 4, dtype=torch.int8)}, "is of type int8"),
    "twice": (lambda t: {**t, f"{COMFY}.lora_down.weight": torch.ones(2, 4)}, "attn2.to_k twice"),
    "two adapters": (
        lambda t: {f"{K}.lora_A.one.weight": torch.ones(2, 4), f"{K}.lora_B.two.weight": torch.ones(4, 2)},
        r"several adapters \(one, two\)",
    ),
    "wrong expert": (
        lambda t: {key.replace("transformer.", "transformer_2."): tensor for key, tensor in t.items()},
        "LoRA of transformer_2, the low-noise expert",
    ),
    "another model": (
        lambda t: {key.replace("blocks", "single_blocks"): tensor for key, tensor in t.items() if "blocks" in key},
        r"nothing in .* fits the transformer: .*single_blocks.* made for another model",
    ),
    "another width": (
        lambda t: {f"{K}.lora_A.weight": torch.ones(2, 1536), f"{K}.lora_B.weight": torch.ones(1536, 2)},
        r"blocks.0.attn2.to_k has 1536 inputs and 1536 outputs, this model's has \d\d and \d\d",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_lora_of_this_model_is_refused_by_what_it_is(model, pairs, tmp_path, name):
    change, message = REFUSED[name]
    file = tmp_path / "lora.safetensors"
    save_file(change(spelled(pairs, FORMATS["diffusers"][0])), file)
    with pytest.raises(ValueError, match=message) as refused:
        model.load_lora(file)
    assert str(file) in str(refused.value)
    check_untouched(model)


def check_untouched(model) -> None:
    """Nothing may be left of a LoRA that did not load, and the next one must load."""
    assert getattr(model.base_transformer, "peft_config", None) is None and model.lora_fit is None
    assert not any(parameter.is_meta for parameter in model.base_transformer.parameters())
    assert all(parameter.requires_grad for parameter in model.base_transformer.parameters())


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"a": 1}, protocol=2))


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": 1}))


@pytest.mark.parametrize("name", ["lora.safetensors", "lora.pt", "lora.ckpt", "pytorch_lora_weights.bin"])
@pytest.mark.parametrize(
    ("write", "message"),
    [
        (pickled, "a pickle of PyTorch. Unpickling can run code"),
        (zipped, "a pickle of PyTorch. Unpickling can run code"),
        (lambda path: path.write_text("<!DOCTYPE html><html>\n</html>"), "but text.*download the file itself"),
        (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid"), "git lfs pull"),
        (lambda path: path.write_bytes(b""), "but empty"),
        (lambda path: path.write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{half"), "not written to its end"),
    ],
    ids=["pickle", "zip", "html", "lfs", "empty", "cut"],
)
def test_other_kinds_of_files_are_named_whatever_they_are_called(model, tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=f"not a whole safetensors file.*{message}"):
        model.load_lora(tmp_path / name)
    check_untouched(model)


def with_settings(pairs: Pairs, folder: Path, **changes) -> Path:
    settings = {"r": RANK, "lora_alpha": 4, "target_modules": sorted(pairs), **changes}
    metadata = {"lora_adapter_metadata": json.dumps({f"transformer.{name}": v for name, v in settings.items()})}
    save_file(spelled(pairs, FORMATS["diffusers"][0]), folder / LORA_FILE, metadata=metadata)
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"r": 16}, "settings say rank 16, but the weights of .* have rank 2"),
        ({"lora_alpha": 0}, "rank or alpha is 0"),
        ({"lora_alpha": "4"}, "rank or alpha is '4'"),
        ({"alpha_pattern": {"attn2.to_k": None}}, "rank or alpha is None"),
        ({"alpha_pattern": {"(": 2}}, r"alpha_pattern is .*not numbers by"),
        ({"rank_pattern": "attn2"}, "rank_pattern is 'attn2', not numbers by"),
        ({"lora_dropout": "x"}, "lora_dropout is 'x'"),
        ({"exclude_modules": "("}, "PEFT cannot read its settings"),
        ({"peft_type": "LOHA"}, "an adapter of type LOHA"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa', which changed the base"),
        ({"use_qalora": True}, "trained with use_qalora=True, which a plain LoRA cannot repeat"),
        ({"modules_to_save": ["proj_out"]}, "modules_to_save=.*cannot repeat"),
        ({"bias": "all"}, "bias='all'"),
        ({"a_setting_of_2030": 3}, r"a_setting_of_2030=3 \(unknown to the PEFT that is installed\)"),
    ],
)
def test_settings_that_a_plain_lora_cannot_repeat_are_refused(model, pairs, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        model.load_lora(with_settings(pairs, tmp_path, **changes))
    check_untouched(model)


def test_settings_of_how_training_started_are_ignored(model, pairs, tmp_path):
    """`megatron_core` names a module that PEFT would import; the start of training says nothing about its result."""
    start = {"init_lora_weights": "gaussian", "megatron_core": "antigravity", "megatron_config": {"a": 1}}
    model.load_lora(with_settings(pairs, tmp_path, **start, peft_version="9.9", a_setting_of_2030=False))
    (config,) = model.transformer.peft_config.values()
    assert config.init_lora_weights is True and config.megatron_config is None and scales(model) == {2}


def test_a_load_that_fails_midway_leaves_the_model_as_it_was(model, pairs, tmp_path, monkeypatch):
    save_file(spelled(pairs, FORMATS["diffusers"][0]), tmp_path / LORA_FILE)
    network = type(model.base_transformer)
    load = network.load_lora_adapter

    def lose_a_weight(self, weights, **options):
        weights.pop(next(reversed(weights)))
        return load(self, weights, **options)

    monkeypatch.setattr(network, "load_lora_adapter", lose_a_weight)
    with pytest.raises(ValueError, match="could not be loaded: 1 weights did not arrive .*lora_B"):
        model.load_lora(tmp_path)
    check_untouched(model)
    monkeypatch.undo()
    model.load_lora(tmp_path)
    assert model.lora_fit.unplaced == ()


def test_a_switched_off_adapter_is_still_an_adapter(model, pairs, tmp_path):
    save_file(spelled(pairs, FORMATS["diffusers"][0]), tmp_path / LORA_FILE)
    model.load_lora(tmp_path)
    model.base_transformer.disable_adapters()
    with pytest.raises(RuntimeError, match="already carries the adapter"):
        model.load_lora(tmp_path)


def test_the_weights_do_not_depend_on_where_the_file_has_them(model, pairs, tmp_path):
    """A mapped tensor may start at any address, and the CPU's kernels round differently at some."""
    save_file(spelled(pairs, FORMATS["diffusers"][0]), tmp_path / LORA_FILE, metadata={"comment": "x" * 13})
    model.load_lora(tmp_path)
    addresses = {value.data_ptr() % 64 for value in model.lora_state_dict().values()}
    assert addresses == {0}


def test_names_are_translated_back_and_forth(pairs):
    for module in pairs:
        for name in (module, renamed(module), underscored(module), underscored(renamed(module))):
            assert diffusers_name(name) == module
    assert diffusers_name("transformer_blocks.0.attn1.to_q") == "transformer_blocks.0.attn1.to_q"


def test_no_change_of_a_files_bytes_or_keys_ends_in_another_error(model, pairs, tmp_path):
    """A damaged or mixed-up file loads whole or is refused by its name, and never leaves anything behind."""
    generator = random.Random(0)
    file = tmp_path / "lora.safetensors"
    module = next(name for name in pairs if name.endswith("attn2.to_k"))
    sound = spelled({module: pairs[module]}, FORMATS["diffusers"][0])
    save_file(sound, file)
    data = file.read_bytes()
    words = [prefix for pattern, _, _ in FORMATS.values() if (prefix := pattern.split("{")[0])]
    words += "blocks.0. .. blocks_0_ attn2.to_k cross_attn.k .lora_A .lora_down .default .weight .alpha".split()
    outcomes = {"loaded": 0, "refused": 0}
    for trial in range(120):
        if trial % 2:
            changed = bytearray(data)
            changed[generator.randrange(300)] = generator.randrange(256)
            file.write_bytes(bytes(changed[: generator.choice([len(data), generator.randrange(len(data))])]))
        else:
            key = "".join(generator.choice(words) for _ in range(generator.randrange(1, 6)))
            extra = generator.choice([torch.randn(2, 24), torch.tensor(2.0), torch.ones(2, 24).bool(), torch.zeros(0)])
            save_file({**sound, key: extra}, file)
        try:
            model.load_lora(file)
        except ValueError as error:
            outcomes["refused"] += 1
            assert str(file) in str(error)
            assert getattr(model.base_transformer, "peft_config", None) is None
        else:
            outcomes["loaded"] += 1
            assert not any(parameter.is_meta for parameter in model.base_transformer.parameters())
            model.unload_lora()
    assert min(outcomes.values()) > 0
