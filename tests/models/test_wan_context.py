"""Test Wan with a context: without one nothing changes, and with one the model attends to its clean frames."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_pipelines import HEIGHT, NUM_FRAMES, WIDTH, token_timestep_pipeline, two_expert_pipeline, wan_pipeline
from tiny_scenes import PROMPT, context_model, scene_row, walk

from spatialalign_trl.models import SamplingSettings, WanContextVideoModel, WanVideoModel, load_video_model
from spatialalign_trl.models.wan_context import CONTEXT_MODULES_FILE
from spatialalign_trl.trainer.lora import attach_lora
from spatialalign_trl.video import write_video

SETTINGS = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, num_inference_steps=2, guidance_scale=3.0)


def noisy(batch: int = 2, frames: int = 3) -> torch.Tensor:
    return torch.randn(batch, 4, frames, 2, 4, generator=torch.Generator().manual_seed(0))


SIGMA = torch.tensor([0.3, 0.8])


def trained(model: WanContextVideoModel, seed: int = 0) -> WanContextVideoModel:
    """Attach a LoRA that changes the output."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in attach_lora(model).parameters():
        if parameter.requires_grad:
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@torch.no_grad()
def test_without_context_it_is_the_base_bit_for_bit():
    base, model = WanVideoModel(wan_pipeline()), context_model()
    conditioning = model.encode_rows([scene_row(0), scene_row(1)])
    text = {"prompt_embeds": conditioning["prompt_embeds"]}
    expected = base.predict(noisy(), SIGMA, text)
    assert torch.equal(model.predict(noisy(), SIGMA, text), expected)
    # The new map is zero, with and without a fresh adapter.
    cameras = {**text, "cameras": conditioning["cameras"]}
    assert torch.equal(model.predict(noisy(), SIGMA, cameras), expected)
    attach_lora(model)
    assert torch.equal(model.predict(noisy(), SIGMA, cameras), expected)
    assert torch.equal(
        model.encode_rows([{"prompt": PROMPT}])["prompt_embeds"], base.encode_prompts([PROMPT])["prompt_embeds"]
    )
    negative = base.encode_prompts([""])
    assert torch.equal(model.sample(text, negative, [1, 2], SETTINGS), base.sample(text, negative, [1, 2], SETTINGS))


@torch.no_grad()
def test_a_context_right_before_the_video_acts_as_a_longer_video_with_its_own_timesteps():
    """The plain transformer predicts the same from context and targets as one video at shifted positions."""
    model, plain = context_model(), wan_pipeline().transformer
    conditioning = model.encode_rows([scene_row(0, 3), scene_row(1, 3)])
    conditioning = {**conditioning, "context_positions": torch.tensor([[-3.0, -2.0, -1.0]]).expand(2, -1)}
    conditioning.pop("cameras")
    whole = torch.cat([conditioning["context_latents"], noisy()], dim=2)
    times = torch.cat([torch.zeros(2, 3), SIGMA[:, None].expand(2, 3)], dim=1) * 1000
    expected = plain(whole, times.repeat_interleave(2, 1), conditioning["prompt_embeds"], return_dict=False)[0][
        :, :, 3:
    ]
    actual = model.predict(noisy(), SIGMA, conditioning)
    assert actual.shape == noisy().shape
    # Attention depends only on differences of positions.
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    conditioning["context_positions"] = conditioning["context_positions"] * 3
    assert (model.predict(noisy(), SIGMA, conditioning) - expected).abs().max() > 1e-4


@torch.no_grad()
def test_each_row_has_its_own_context_and_positions():
    model = trained(context_model())
    rows = [scene_row(0), scene_row(1, context_indices=[0, 1, 2, 3, 40])]
    together = model.predict(noisy(), SIGMA, model.encode_rows(rows))
    for i, row in enumerate(rows):
        alone = model.predict(noisy()[i : i + 1], SIGMA[i : i + 1], model.encode_rows([row]))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cameras_have_an_effect_once_trained_but_not_in_the_reference():
    model = trained(context_model())
    conditioning = model.encode_rows([scene_row(0), scene_row(1)])
    elsewhere = model.encode_rows([scene_row(0, camera_poses=walk(NUM_FRAMES)), scene_row(1)])
    predicted, predicted_elsewhere = (model.predict(noisy(), SIGMA, cameras) for cameras in (conditioning, elsewhere))
    assert not torch.equal(predicted[0], predicted_elsewhere[0])
    assert torch.equal(predicted[1], predicted_elsewhere[1])
    fresh = context_model()
    with model.reference():
        assert torch.equal(model.predict(noisy(), SIGMA, conditioning), fresh.predict(noisy(), SIGMA, conditioning))
    model.set_reference_to_policy()
    with model.reference():
        assert torch.equal(model.predict(noisy(), SIGMA, conditioning), predicted)


@torch.no_grad()
def test_a_saved_lora_loads_bit_for_bit(tmp_path: Path):
    model = trained(context_model())
    conditioning = model.encode_rows([scene_row(0), scene_row(1)])
    model.save_lora(tmp_path)
    again = context_model()
    again.load_lora(tmp_path)
    assert "camera_projection.lora_A.weight" in again.lora_state_dict()
    assert again.lora_state_dict()["camera_projection.lora_B.weight"].shape[1] == 24  # full rank
    assert torch.equal(again.predict(noisy(), SIGMA, conditioning), model.predict(noisy(), SIGMA, conditioning))


@torch.no_grad()
def test_a_map_trained_in_full_is_saved_in_the_pipelines_folder(tmp_path: Path):
    model = context_model()
    torch.nn.init.normal_(model.base_transformer.camera_projection.weight, std=0.1)
    wan_pipeline().save_pretrained(tmp_path)
    assert model.save_context_modules(tmp_path).name == CONTEXT_MODULES_FILE
    again = load_video_model(str(tmp_path), variant="context", device="cpu", context_frames=3)
    assert isinstance(again, WanContextVideoModel) and again.context_frames == 3
    conditioning = model.encode_rows([scene_row(0), scene_row(1)])
    assert torch.equal(again.predict(noisy(), SIGMA, conditioning), model.predict(noisy(), SIGMA, conditioning))


@torch.no_grad()
def test_a_map_of_fourier_rays_is_saved_with_their_name(tmp_path: Path):
    model = context_model(rays="fourier", context_cameras=True)
    torch.nn.init.normal_(model.base_transformer.camera_projection.weight, std=0.1)
    wan_pipeline().save_pretrained(tmp_path)
    model.save_context_modules(tmp_path)
    again = load_video_model(str(tmp_path), variant="context", device="cpu", context_cameras=True)
    assert again.rays == "fourier" and again.lora_full_rank == {"camera_projection": 4 * 54}
    conditioning = model.encode_rows([scene_row(0), scene_row(1)])
    predicted = model.predict(noisy(), SIGMA, conditioning)
    assert torch.equal(again.predict(noisy(), SIGMA, conditioning), predicted)
    # Both cameras of the target and of the context matter.
    for name in ("cameras", "context_cameras"):
        hidden = {**conditioning, name: torch.zeros_like(conditioning[name])}
        assert (model.predict(noisy(), SIGMA, hidden) - predicted).abs().max() > 1e-4, name
    with pytest.raises(ValueError, match="rays='pluecker': .*was trained with 'fourier'. Leave rays out"):
        load_video_model(str(tmp_path), variant="context", device="cpu", rays="pluecker")
    # A map without a name is one of Pluecker rays, as in files of earlier versions.
    plain = context_model()
    plain.save_context_modules(tmp_path)
    assert load_video_model(str(tmp_path), variant="context", device="cpu").rays == "pluecker"


@torch.no_grad()
def test_a_search_may_see_the_cameras_of_its_recording():
    """In grounding the path is not known in advance: the row has no cameras of the target."""
    row = scene_row(0, camera_poses=None)
    model = trained(context_model(context_cameras=True))
    conditioning = model.encode_rows([row])
    assert "context_cameras" in conditioning and "cameras" not in conditioning
    predicted = model.predict(noisy(1), SIGMA[:1], conditioning)
    zeros = torch.zeros(1, NUM_FRAMES, 16)
    assert torch.equal(model.predict(noisy(1), SIGMA[:1], {**conditioning, "cameras": zeros}), predicted)
    without = context_model(context_cameras=False).encode_rows([row])
    assert set(without) == set(conditioning) - {"context_cameras"}
    assert not torch.equal(model.predict(noisy(1), SIGMA[:1], without), predicted)
    assert model.sample(conditioning, model.encode_prompts([""]), [1], SETTINGS).isfinite().all()
    for column in ("intrinsics", "context_poses"):
        with pytest.raises(ValueError, match=f"context_poses without intrinsics|needs the column {column}"):
            model.encode_rows([{name: value for name, value in row.items() if name != column}])


@torch.no_grad()
@pytest.mark.parametrize("guidance", ["joint", "instruction"])
def test_guidance_compares_with_the_null_branch(guidance: str):
    model = trained(context_model(guidance=guidance))
    conditioning, negative = model.encode_rows([scene_row(0)]), model.encode_prompts(["blurry"])
    calls = []
    predict = model.predict
    model.predict = lambda *args: calls.append((args, predict(*args))) or calls[-1][1]
    one_step = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, num_inference_steps=1, guidance_scale=3.0)
    latents = model.sample(conditioning, negative, [5], one_step)
    (guided, v), (nulled, v_null) = calls
    noise = model.initial_noise([5], one_step)
    torch.testing.assert_close(latents, noise - (v_null + 3 * (v - v_null)))  # one Euler step from sigma 1 to 0
    null = nulled[2]
    assert torch.equal(guided[2]["context_latents"], conditioning["context_latents"])
    assert torch.equal(null["prompt_embeds"], negative["prompt_embeds"]) and not null["cameras"].any()
    kept = torch.equal(null["context_latents"], conditioning["context_latents"])
    assert kept == (guidance == "instruction") and (null["context_sigma"] == 0).all() == kept
    assert abs(null["context_latents"].std() - 1) < 0.3 or kept
    assert torch.equal(null["context_positions"], conditioning["context_positions"])


@torch.no_grad()
def test_a_sample_depends_only_on_its_row_and_seed():
    model = trained(context_model())
    rows, negative = [scene_row(0), scene_row(1)], model.encode_prompts([""])
    both = model.sample(model.encode_rows(rows), negative, [1, 2], SETTINGS)
    alone = model.sample(model.encode_rows(rows[1:]), negative, [2], SETTINGS)
    torch.testing.assert_close(alone[0], both[1], rtol=1e-3, atol=1e-4)
    assert torch.equal(both, model.sample(model.encode_rows(rows), negative, [1, 2], SETTINGS))


@torch.no_grad()
def test_its_denoising_loop_equals_the_pipelines():
    for pipeline in (wan_pipeline(), wan_pipeline(kind="unipc")):
        model = WanContextVideoModel(pipeline)
        text, negative = model.encode_prompts([PROMPT]), model.encode_prompts(["blurry"])
        settings = SamplingSettings(NUM_FRAMES, HEIGHT, WIDTH, num_inference_steps=4, guidance_scale=3.0)
        expected = model.sample(text, negative, [1], settings)
        noise = model.initial_noise([1], settings)
        # Converting a timestep to sigma and back may round.
        torch.testing.assert_close(model._denoise(noise, text, negative, settings), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_timesteps_per_token_of_wan_2_2_work():
    model = WanContextVideoModel(token_timestep_pipeline(), context_cameras=True)
    row = scene_row(0, 2, context=np.zeros((2, 32, 64, 3), np.uint8), camera_poses=walk(5))
    conditioning = model.encode_rows([row])
    settings = SamplingSettings(5, 32, 64, num_inference_steps=2, guidance_scale=2.0)
    latents = trained(model).sample(conditioning, model.encode_prompts([""]), [0], settings)
    assert latents.shape == (1, *model.latent_shape(5, 32, 64)) and latents.isfinite().all()


@torch.no_grad()
def test_long_contexts_run_and_frames_are_chosen():
    long = trained(context_model(context_frames=40))
    few = context_model(context_frames=2)
    row = scene_row(0, 60)
    assert long.predict(noisy(1), SIGMA[:1], long.encode_rows([row])).isfinite().all()
    chosen = few.encode_rows([row])["context_positions"][0].tolist()
    assert len(chosen) == 2 and chosen[-1] == -1.0
    none = context_model(context_layout="none").encode_rows([row])
    assert set(none) == {"prompt_embeds", "cameras"}
    assert context_model(context_layout="contiguous").encode_rows([scene_row()])["context_positions"].tolist() == [
        [-5.0, -4.0, -3.0, -2.0, -1.0]
    ]


def test_a_row_is_identified_by_its_content(tmp_path: Path):
    model = context_model()
    files = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for file in files:
        write_video(file, scene_row()["context"], fps=8, crf=0)
    by_path, by_bytes = (
        scene_row(context=str(files[0])),
        scene_row(context={"bytes": files[1].read_bytes(), "path": None}),
    )
    assert model.row_content(by_path) == model.row_content(by_bytes)
    assert torch.equal(
        model.encode_rows([by_path])["context_latents"], model.encode_rows([by_bytes])["context_latents"]
    )
    assert (
        model.row_content({"prompt": PROMPT})
        == PROMPT.encode()
        == WanVideoModel.row_content(model, {"prompt": PROMPT})
    )
    others = [scene_row(1), scene_row(camera_poses=walk(NUM_FRAMES)), scene_row(context_indices=[0, 1, 2, 3, 4])]
    contents = [model.row_content(row) for row in (scene_row(), *others)]
    contents += [
        context_model(**options).row_content(scene_row())
        for options in ({"context_frames": 3}, {"context_layout": "none"})
    ]
    assert len(set(contents)) == len(contents)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"context": None}, "camera_poses without context"),
        ({"intrinsics": None}, "camera_poses without intrinsics"),
        ({"context_indices": [1, 2]}, "context_indices: 2 numbers for 5 frames"),
        ({"context_poses": walk(4)}, "context_poses: 4 poses for 5 frames"),
        ({"context": 3}, "context: expected a video as bytes or a path, got 3"),
    ],
)
def test_broken_rows_are_refused(changes: dict, message: str):
    with pytest.raises(ValueError, match=message):
        context_model().encode_rows([scene_row(**changes)])


def test_bad_options_and_sizes_are_refused():
    for options, message in (
        ({"context_layout": "contigous"}, "contiguous"),
        ({"guidance": "text"}, "guidance='text'"),
        ({"rays": "fourrier"}, "rays='fourrier': unknown. Did you mean 'fourier'"),
        ({"context_frames": 0}, "context_frames=0"),
    ):
        with pytest.raises(ValueError, match=message):
            context_model(**options)
    with pytest.raises(ValueError, match="two experts"):
        WanContextVideoModel(two_expert_pipeline())
    with pytest.raises(ValueError, match="Did you mean 'context'"):
        load_video_model("tiny", variant="contxt")
    model = context_model()
    conditioning = model.encode_rows([scene_row()])
    with pytest.raises(ValueError, match="9 poses, but the video has 5 frames"):
        model.predict(noisy(1, 2), SIGMA[:1], conditioning)
    with pytest.raises(ValueError, match="Bring both to one size"):
        model.predict(torch.zeros(1, 4, 3, 4, 4), SIGMA[:1], {**conditioning, "cameras": conditioning["cameras"]})
