"""Caches: whatever a cached result depends on is in its key, nothing that is not finite is kept, writes are atomic."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_ltx
import torch
from safetensors.torch import save
from tiny_pairs import latent_pairs, logged, moved, spatialalign_trainer, video_pairs, wan_model, with_noise_seeds

from spatialalign_trl.models import LTXVideoModel
from spatialalign_trl.models.base import VideoModel
from spatialalign_trl.trainer import reference_cache
from spatialalign_trl.trainer.draws import DrawKey
from spatialalign_trl.trainer.latents import Share, encoder_fingerprint, prepare_pairs, weights_digest
from spatialalign_trl.trainer.lora import attach_lora
from spatialalign_trl.trainer.losses import Pair
from spatialalign_trl.trainer.reference_cache import ReferenceCache, reference_fingerprint
from spatialalign_trl.trainer.reference_sync import save_reference

PAIRS, DRAWS = 2, 2


def model_with_reference(value: float) -> VideoModel:
    """Make a model whose reference is a policy with this value in the middle of a weight."""
    model = wan_model()
    weights = [parameter for name, parameter in attach_lora(model).named_parameters() if "lora_B" in name]
    for weight in weights:
        weight.data.fill_(0.05)
    weight.data.view(-1)[weight.numel() // 2] = value
    model.set_reference_to_policy()
    return model


def half_model() -> VideoModel:
    model = wan_model()
    model.base_transformer.to(torch.bfloat16)
    return model


def retrained_model() -> VideoModel:
    """Make a model with another transformer under the same name, and the same encoders."""
    model = wan_model()
    for parameter in model.base_transformer.parameters():
        parameter.data.mul_(1.1)
    return model


def changed_computation() -> VideoModel:
    model = wan_model()
    model.computation["attention_backend"] = "another"
    return model


REFERENCE_OPTIONS: dict[str, dict[str, Any]] = {
    "seed": {"seed": 8},
    "flow_shift": {"flow_shift": 2.0},
    "min_sigma": {"min_sigma": 0.9},
    "max_sigma": {"max_sigma": 0.3},
    "timestep_sampling": {"timestep_sampling": "logit_normal"},
    "num_train_timesteps": {"num_train_timesteps": 3},
    "shared_noise": {"shared_noise": True},
    "rollout_noise": {"rollout_noise": True},
    "noise seeds": {"rollout_noise": True, "train_dataset": with_noise_seeds(latent_pairs(PAIRS), first=1)},
    "latents": {"train_dataset": with_noise_seeds(latent_pairs(PAIRS, seed=1))},
    "prompts": {
        "train_dataset": with_noise_seeds(latent_pairs(PAIRS)).map(lambda row: {"prompt": row["prompt"] + " again"})
    },
    "autocast": {"bf16": True},
    "batch": {"per_device_train_batch_size": 1},
    "several draws": {"num_noise_draws": 2},
    "separate_forward": {"separate_forward": True},
    "weights": {"model": retrained_model},
    "dtype": {"model": half_model, "bf16": True},
    "computation": {"model": changed_computation},
    "adapter": {"model": lambda: model_with_reference(0.04)},
    "adapter's value": {"model": lambda: model_with_reference(0.06)},
}


NewFiles = Callable[..., int]


@pytest.fixture(scope="module")
def new_files(tmp_path_factory: pytest.TempPathFactory) -> NewFiles:
    """A function that trains a step with some settings, and counts the predictions that no run before it made."""
    folder = tmp_path_factory.mktemp("keys")
    cache = folder / "cache"

    def train(model: Callable[[], VideoModel] = wan_model, **options: Any) -> int:
        before = set(cache.glob("reference-*"))
        settings = {"num_fixed_draws": DRAWS, "precompute_reference": True, "latent_cache_dir": str(cache)}
        settings |= {"max_steps": 1, "train_dataset": with_noise_seeds(latent_pairs(PAIRS)), **options}
        trainer = spatialalign_trainer(folder, model=model(), **settings)
        trainer.train()
        assert logged(trainer, "rewards/margins") == [0]  # not so with the prediction of another reference or draw
        assert logged(trainer, "distance_to_reference") == [0]
        return len(set(cache.glob("reference-*")) - before)

    assert train() == PAIRS * DRAWS
    return train


@pytest.mark.parametrize("name", REFERENCE_OPTIONS)
def test_every_setting_has_predictions_of_its_own_and_margin_0_at_step_0(new_files: NewFiles, name: str) -> None:
    options = REFERENCE_OPTIONS[name]
    if "value" in name:  # beside the predictions of the other value, also if this is the only test
        new_files(model=lambda: model_with_reference(0.05))
    if name == "noise seeds":
        new_files(rollout_noise=True)
    assert new_files(**options) == PAIRS * DRAWS


@pytest.mark.parametrize(
    "options", [{"beta": 9.0, "learning_rate": 1.0}, {"loss_type": "hinge", "zeroth_order_weight": 0.0}]
)
def test_settings_that_change_no_prediction_use_it_again(new_files: NewFiles, options: dict[str, Any]) -> None:
    assert new_files(**options) == 0


def test_draws_sides_and_libraries_have_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = prepare_pairs(latent_pairs(3), wan_model(), tmp_path, show_progress=False)
    cache = ReferenceCache(tmp_path, wan_model(), {})
    twins = latent_pairs(1).select([0, 0])  # rows of equal content draw other noise
    twins = prepare_pairs(twins, wan_model(), tmp_path, show_progress=False)
    assert cache.path(twins, DrawKey("fixed", 0, 0)) != cache.path(twins, DrawKey("fixed", 1, 0))
    keys = [DrawKey(stream, row, index) for stream in ("eval", "fixed") for row in (0, 1) for index in (0, 1)]
    paths = {cache.path(pairs, key) for key in keys}
    for library in (torch, reference_cache.diffusers):
        with monkeypatch.context() as patch:
            patch.setattr(library, "__version__", "another")
            paths.add(ReferenceCache(tmp_path, wan_model(), {}).path(pairs, keys[0]))
    for column in ("chosen_latents", "rejected_latents"):  # of one row alone
        data = latent_pairs(3).to_dict()
        data[column][0] = data[column][1]
        other = type(latent_pairs(1)).from_dict(data, latent_pairs(1).features)
        paths.add(cache.path(prepare_pairs(other, wan_model(), tmp_path, show_progress=False), keys[0]))
    assert len(paths) == len(keys) + 2 + 2


def test_the_frame_rate_of_ltx_is_part_of_its_reference() -> None:
    first, second = (LTXVideoModel(tiny_ltx.ltx_pipeline(), "tiny", frame_rate=rate) for rate in (25, 30))
    assert reference_fingerprint(first) != reference_fingerprint(second)


@pytest.mark.parametrize("change", ["family", "name_or_path", "revision"])
def test_the_name_of_the_model_is_part_of_both_fingerprints(change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wan_model()
    before = encoder_fingerprint(model), reference_fingerprint(model)
    monkeypatch.setattr(type(model) if change == "family" else model, change, "another")
    assert encoder_fingerprint(model) != before[0] and reference_fingerprint(model) != before[1]


def test_tiles_and_the_weights_of_every_encoder_are_part_of_the_encoders_fingerprint() -> None:
    model = wan_model()
    prints = [encoder_fingerprint(model)]
    model.save_vae_memory(slicing=True)  # changes no number
    assert encoder_fingerprint(model) == prints[0]
    model.save_vae_memory(tiling=True)
    prints.append(encoder_fingerprint(model))
    for part in model.encoder_names:
        weights = getattr(model.pipeline, part).state_dict()
        for value in (next(iter(weights.values())), list(weights.values())[-1]):
            value.view(-1)[0] += 1
            prints.append(encoder_fingerprint(model))
    model.base_transformer.to(torch.bfloat16)  # no encoder
    assert encoder_fingerprint(model) == prints[-1]
    assert len(set(prints)) == len(prints) == 2 + 2 * len(model.encoder_names)


def test_a_digest_of_weights_covers_names_shapes_dtypes_and_both_ends() -> None:
    def digest(part: str = "vae", name: str = "w", **changes: Any) -> str:
        values = torch.arange(12.0)
        for position, value in changes.pop("set", {}).items():
            values[position] = value
        value = values.view(changes.pop("shape", (12,))).to(changes.pop("dtype", torch.float32))
        digest = hashlib.sha256()
        weights_digest(digest, part, {name: value, "other": torch.zeros(2)})
        return digest.hexdigest()

    others = [digest(part="text_encoder"), digest(name="v"), digest(shape=(3, 4)), digest(dtype=torch.float64)]
    others += [digest(set={position: 99}) for position in (0, 3, 8, 11)]
    assert digest() == digest() and len({digest(), *others}) == 1 + len(others)


# Numbers that are not finite


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("row", "side"), [(0, "chosen"), (1, "rejected")])
def test_latents_that_are_not_finite_are_refused_on_the_way_in_and_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: int, side: str, value: float
) -> None:
    # In: from a dataset, by the process that has the cell.
    data = latent_pairs(2)
    latents = torch.zeros(4, 3, 2, 4)
    latents[-1, -1, -1, -1] = value
    cells = data.to_dict()
    cells[f"{side}_latents"][row] = save({"latents": latents})
    broken = type(data).from_dict(cells, data.features)
    share = Share(rank=2 * row + (side == "rejected"), world_size=4)
    for processes in (Share(), share):
        with pytest.raises(ValueError, match=f"row {row}, column '{side}_latents': .*not finite"):
            prepare_pairs(broken, wan_model(), tmp_path, share=processes, show_progress=False)

    # Out: from the VAE, before a file is written.
    model, encode, done = wan_model(), wan_model().encode_video, []

    def encode_video(videos: list) -> torch.Tensor:
        found = encode(videos)
        if len(done) == 2 * row + (side == "rejected"):
            found[0, -1, -1, -1, -1] = value
        done.append(found)
        return found

    monkeypatch.setattr(model, "encode_video", encode_video)
    with pytest.raises(ValueError, match=f"row {row}, column '{side}': the VAE returned values that are not finite"):
        prepare_pairs(video_pairs(2), model, tmp_path / "videos", show_progress=False)
    assert len(list((tmp_path / "videos").glob("video-*"))) == len(done) - 1


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_predictions_that_are_not_finite_are_refused(tmp_path: Path, side: str, value: float) -> None:
    model = wan_model()
    pairs = prepare_pairs(latent_pairs(2), model, tmp_path, show_progress=False)
    cache, key = ReferenceCache(tmp_path, model, {}), DrawKey("fixed", 1, 0)
    predictions = Pair(torch.zeros(4), torch.zeros(4))
    getattr(predictions, side)[3] = value
    with pytest.raises(ValueError, match="train_dataset row 1: the reference's prediction is not finite"):
        cache.write(pairs, key, predictions)
    assert not list(tmp_path.glob("reference-*"))


# Atomic writes


def test_a_write_that_is_cut_off_leaves_no_file_under_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last step of an atomic write fails: what was written so far must not count as the file."""
    model = wan_model()
    pairs = prepare_pairs(latent_pairs(1), model, tmp_path / "whole", show_progress=False)
    moved(spatialalign_trainer(tmp_path / "run", model=model, train_dataset=latent_pairs(1)))
    model.set_reference_to_policy()
    cache = ReferenceCache(tmp_path / "reference", model, {})
    prediction = Pair(torch.zeros(4), torch.zeros(4))
    writes = {
        "reference": lambda: cache.write(pairs, DrawKey("fixed", 0, 0), prediction),
        "videos": lambda: prepare_pairs(video_pairs(1), wan_model(), tmp_path / "videos", show_progress=False),
        "prompts": lambda: prepare_pairs(latent_pairs(1), wan_model(), tmp_path / "prompts", show_progress=False),
        "adapter": lambda: save_reference(model, tmp_path / "adapter"),
        "lora": lambda: model.save_lora(tmp_path / "lora"),
    }

    def fail(*args: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    for name, write in writes.items():
        with pytest.raises(OSError, match="disk full"):
            write()
        names = {path.name for path in (tmp_path / name).glob("*")}
        assert not any(name.endswith(".safetensors") and not name.startswith(".") for name in names), (name, names)
    monkeypatch.undo()
    for name, write in writes.items():
        write()
        assert list((tmp_path / name).glob("*.safetensors")), name
