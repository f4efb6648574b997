"""What is traced without weights is what every family computes with weights: shapes, FLOPs, memory and batches."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import tiny_cogvideox_hunyuan
import tiny_ltx
import tiny_pipelines
import torch
from tiny_family import TinyFamily
from torch.utils.flop_counter import FlopCounterMode

from spatialalign_trl.models import SamplingSettings, VideoModel, load_video_model
from spatialalign_trl.planning.architectures import architecture_of, read_architecture
from spatialalign_trl.planning.fake_model import block_counts, bytes_of, prompt_shapes, tensors_of
from spatialalign_trl.planning.stages import GUIDED_IN_ONE_BATCH, ModelSetup, StageTracer
from spatialalign_trl.planning.tracing import CPU_ATTENTION, Meter, fake_tensors

FAMILIES: list[TinyFamily] = [
    family
    for family in (*tiny_pipelines.FAMILIES, *tiny_ltx.FAMILIES, *tiny_cogvideox_hunyuan.FAMILIES)
    if "variant" not in family.options  # models that see a recording are not planned
]


@dataclass
class Both:
    """A tiny model with weights, and the tracer of the same model without."""

    family: TinyFamily
    model: VideoModel
    tracer: StageTracer


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def both(request, tmp_path_factory) -> Both:
    family = request.param
    folder = tmp_path_factory.mktemp(family.name)
    family.build().save_pretrained(folder)
    setup = ModelSetup(*family.size, dtype=torch.float32, options=family.options)
    return Both(
        family,
        load_video_model(str(folder), device="cpu", **family.options),
        StageTracer(read_architecture(str(folder)), setup),
    )


def test_the_model_is_the_same_without_weights(both):
    model, tracer = both.model, both.tracer
    assert tracer.parameters == sum(weight.numel() for weight in model.base_transformer.parameters())
    assert tracer.weights["transformer"] == bytes_of(model.base_transformer)
    assert tracer.weights["vae"] == bytes_of(model.pipeline.vae)
    assert tracer.weights["text_encoder"] == bytes_of(model.pipeline.text_encoder)
    assert tracer.latent_shape == model.latent_shape(*both.family.size)


def test_a_loaded_model_has_the_architecture_of_its_files(both):
    loaded, read = architecture_of(both.model), both.tracer.architecture
    assert block_counts(loaded) == block_counts(read) and loaded.prompt_tokens == read.prompt_tokens
    assert set(loaded.components) == set(read.components)
    tracer = StageTracer(loaded, both.tracer.setup)
    assert tracer.weights == both.tracer.weights and tracer.predict() == both.tracer.predict()


def test_prompts_have_the_shapes_of_real_ones(both):
    real = both.model.encode_prompts(["a fox is on the left of a stump"])
    with fake_tensors():
        shapes = prompt_shapes(both.tracer._build())
    assert {name: tuple(value.shape[1:]) for name, value in real.items()} == shapes


def test_a_prediction_costs_what_it_costs_with_weights(both):
    model = both.model
    conditioning = model.encode_prompts(["a fox is on the left of a stump"])
    noisy, sigma = torch.zeros(1, *both.tracer.latent_shape), torch.full((1,), 0.5)
    memory, counter = Meter(), FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)  # torch's own counter
    for tensor in [*tensors_of(model.base_transformer), noisy, sigma, *conditioning.values()]:
        memory.add(tensor)
    before = memory.current
    with memory, counter, torch.no_grad():
        model.predict(noisy, sigma, conditioning)
    traced = both.tracer.predict()
    assert traced.flops == counter.get_total_flops() > 0
    # Fake inputs are made before the trace begins, but conversions of small constants differ.
    assert traced.memory == pytest.approx(memory.peak - before, rel=0.1)


def test_decoding_costs_what_it_costs_with_weights(both):
    counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
    with counter, torch.no_grad():
        both.model._decode_to_pixels(torch.zeros(1, *both.tracer.latent_shape))
    assert both.tracer.decode().flops == counter.get_total_flops() > 0


def test_guidance_takes_the_batches_that_a_plan_counts(both):
    model = both.model
    common = {"num_inference_steps": 3, "guidance_scale": 3.0, "fps": model.default_settings().fps}
    settings = SamplingSettings(*both.family.size, **{**common, **both.family.settings})
    batches = []
    hook = model.base_transformer.register_forward_pre_hook(
        lambda module, args, kwargs: batches.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    negative = model.encode_prompts([settings.negative_prompt])
    try:
        model.sample(model.encode_prompts(["a fox"]), negative, [1], settings)
    finally:
        hook.remove()
    guided = model.uses_negative_prompt(settings)
    assert both.tracer.uses_negative_prompt(settings) == guided
    if getattr(model, "boundary", None) is not None:  # the other expert takes some of the steps
        assert set(batches) == {1}
    else:
        together = guided and model.family in GUIDED_IN_ONE_BATCH
        assert set(batches) == {2 if together else 1}
        assert sum(batches) == 3 * (2 if guided else 1)
