"""The published checkpoints at full size: their weights, their LoRA, and what one forward and one step compute."""

from __future__ import annotations

import pytest
import torch

from spatialalign_trl.planning.architectures import PUBLISHED
from spatialalign_trl.planning.cards import GIB
from spatialalign_trl.planning.stages import ModelSetup, StageTracer
from spatialalign_trl.trainer.spatialalign_config import SpatialAlignConfig

SIZE_480P = (81, 480, 832)
# Model -> size, weights, weights of the LoRA, PFLOP of one forward. Counted on real modules on torch's meta device,
# and with FlopCounterMode on all layers.
FULL_SIZE = {
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": (SIZE_480P, 1_418_996_800, 3_088_384, 0.2830),
    "Wan-AI/Wan2.1-T2V-14B-Diffusers": (SIZE_480P, 14_288_491_584, 13_418_496, 1.678),
    "Wan-AI/Wan2.2-T2V-A14B-Diffusers": (SIZE_480P, 14_288_491_584, 13_418_496, 1.678),
    "Wan-AI/Wan2.2-TI2V-5B-Diffusers": ((121, 704, 1280), 4_999_787_712, 6_111_232, 0.521),
}


def tracer(name: str, size: tuple[int, int, int] = SIZE_480P, **setup) -> StageTracer:
    return StageTracer(PUBLISHED[name], ModelSetup(*size, **setup))


def trainer_settings(tmp_path, **settings) -> SpatialAlignConfig:
    return SpatialAlignConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=True, report_to="none", per_device_train_batch_size=1, **settings
    )


@pytest.mark.parametrize("name", FULL_SIZE)
def test_weights_and_flops_of_wan(name):
    size, parameters, lora, pflop = FULL_SIZE[name]
    wan = tracer(name, size)
    assert (wan.parameters, wan.lora_parameters) == (parameters, lora)
    assert wan.predict().flops / 1e15 == pytest.approx(pflop, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "billions", "lora_millions"),
    [
        ("Lightricks/LTX-Video", 1.92, 3.83),
        ("THUDM/CogVideoX-2b", 1.69, 3.78),
        ("THUDM/CogVideoX-5b", 5.57, 8.37),
        ("hunyuanvideo-community/HunyuanVideo", 12.82, 4.05),
        ("hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v", 8.33, 7.17),
    ],
)
def test_weights_of_the_other_families(name, billions, lora_millions):
    """The numbers that the recipes' YAML files have, counted on the modules of all layers."""
    size = {"Lightricks/LTX-Video": (9, 64, 64)}.get(name, (9, 64, 64))
    model = tracer(name, size)
    assert model.parameters / 1e9 == pytest.approx(billions, abs=0.005)
    assert model.lora_parameters / 1e6 == pytest.approx(lora_millions, abs=0.005)


@pytest.mark.slow
def test_a_checkpointed_step_of_wan(tmp_path):
    wan = tracer("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    args = trainer_settings(tmp_path, gradient_checkpointing=True)
    step = wan.training_step(args)
    assert step.flops / 1e15 == pytest.approx(2.83, rel=2e-3)
    # A forward of both videos by the reference, by the policy, and again in the backward pass, which computes the
    # gradients of activations: more than 3 and less than 6 forwards of a pair.
    assert 6 < step.flops / wan.predict().flops < 12
    network = wan.weights["transformer"]
    assert 12 * GIB < step.memory + network < 18 * GIB
    separate = wan.training_step(args, separate_forward=True)
    assert separate.memory < step.memory and separate.flops == pytest.approx(step.flops, rel=1e-3)
    assert wan.training_step(args, gradient_checkpointing=False).memory > 6 * step.memory


def test_quantised_weights_take_less_and_are_as_many(tmp_path):
    name, size = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", (5, 64, 64)
    plain, four, eight = (
        tracer(name, size, quantization=quantization)
        for quantization in (None, "bitsandbytes_4bit", "bitsandbytes_8bit")
    )
    sizes = [model.weights["transformer"] for model in (four, eight, plain)]
    assert sizes == sorted(sizes) and sizes[0] < 0.4 * sizes[2]
    assert four.parameters == eight.parameters == plain.parameters
    assert four.lora_parameters == plain.lora_parameters
    step = four.training_step(trainer_settings(tmp_path, gradient_checkpointing=True))
    assert step.flops == plain.training_step(trainer_settings(tmp_path, gradient_checkpointing=True)).flops


def test_an_illegal_size_names_the_nearest_legal_ones():
    with pytest.raises(ValueError, match="num_frames=80: must be a multiple of 4 plus 1 .* Use 77 or 81"):
        tracer("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", (80, 480, 832))


def test_unknown_options_and_lora_targets_are_refused():
    with pytest.raises(ValueError, match="no option 'expart'"):
        tracer("Wan-AI/Wan2.2-T2V-A14B-Diffusers", options={"expart": "high_noise"})
    with pytest.raises(ValueError, match="only one transformer"):
        tracer("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", options={"expert": "high_noise"})


def test_tracing_leaves_the_dtype_of_new_tensors_alone():
    tracer("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", (5, 64, 64)).predict()
    assert torch.empty(1).dtype == torch.float32 and type(torch.empty(1)) is torch.Tensor
