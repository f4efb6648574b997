"""Build random CogVideoX and HunyuanVideo pipelines of real diffusers classes, without a network."""

from __future__ import annotations

import inspect
import string
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tiny_family import TinyFamily
from tiny_text import T5_DIM, clip_tokenizer, seeded, t5_encoder, t5_tokenizer
from transformers import (
    AddedToken,
    ByT5Tokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    LlamaConfig,
    LlamaModel,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Tokenizer,
)

NUM_FRAMES, HEIGHT, WIDTH = 9, 16, 32
PROMPT_TOKENS = 64


# CogVideoX


@seeded(0)
def cogvideox_pipeline(rotary: bool = False, patch_size_t: int | None = None, dpm: bool = False) -> CogVideoXPipeline:
    """
    Build a pipeline like CogVideoX-2B's (sinusoidal positions, SNR shift 3).

    Args:
        rotary (`bool`): rotary positions and SNR shift 1, as in 5B.
        patch_size_t (`int`): 2 takes latent frames in pairs, as 1.5 does.
        dpm (`bool`): the solver that adds noise at every step.
    """
    tokens = t5_tokenizer()
    scheduler = CogVideoXDPMScheduler if dpm else CogVideoXDDIMScheduler
    return CogVideoXPipeline(
        tokenizer=tokens,
        text_encoder=t5_encoder(len(tokens)),
        vae=AutoencoderKLCogVideoX(
            block_out_channels=(4, 4, 4, 4),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            scaling_factor=0.7 if rotary else 1.15258426,
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
        ).eval(),
        transformer=CogVideoXTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            time_embed_dim=8,
            text_embed_dim=T5_DIM,
            num_layers=2,
            sample_width=4,
            sample_height=2,
            sample_frames=NUM_FRAMES,
            patch_size_t=patch_size_t,
            max_text_seq_length=tokens.model_max_length,
            use_rotary_positional_embeddings=rotary,
        ).eval(),
        scheduler=scheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            timestep_spacing="trailing",
            snr_shift_scale=1.0 if rotary else 3.0,
            clip_sample=False,
            set_alpha_to_one=True,
        ),
    )


# HunyuanVideo

# Sizes of the language models and of the transformers that both versions have in common.
_LANGUAGE_MODEL = {"hidden_size": T5_DIM, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 3}
_DUAL_STREAM = {
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 10,
    "num_refiner_layers": 1,
    "text_embed_dim": T5_DIM,
    "rope_axes_dim": (2, 4, 4),
}


def _chunks(text: str, count: int) -> list[str]:
    """Cut a text into `count` pieces of equal length; the last one also gets the rest."""
    length = len(text) // count
    return [text[i * length : (i + 1) * length] for i in range(count - 1)] + [text[(count - 1) * length :]]


def _add_tokens(tokens: PreTrainedTokenizerBase, texts: list[str]) -> None:
    tokens.add_tokens([AddedToken(text, normalized=False) for text in dict.fromkeys(texts)])


def _llama_tokenizer() -> LlamaTokenizer:
    """
    Build a tokenizer that knows every letter, and splits the pipeline's prompt template into the 95 tokens (including
    the start token) that the pipeline cuts off, so that tests run the published template and its crop.
    """
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    letters = ["▁", *sorted(set(string.printable) - set("\x0b\x0c"))]
    pieces = [*special, *letters, *(f"<0x{i:02X}>" for i in range(256))]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokens = LlamaTokenizer(vocab=vocabulary, merges=[], pad_token="<pad>", padding_side="right")
    before, after = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")
    start = len(tokens("").input_ids)
    _add_tokens(tokens, [*_chunks(before, DEFAULT_PROMPT_TEMPLATE["crop_start"] - start), after])
    return tokens


@seeded(0)
def hunyuan_video_pipeline(guidance_embeds: bool = True) -> HunyuanVideoPipeline:
    """Build a pipeline like HunyuanVideo's, or with `guidance_embeds=False` one without distilled guidance."""
    llama = _llama_tokenizer()
    clip = clip_tokenizer(string.ascii_lowercase + string.digits + ".,!?'-", max_length=77)
    return HunyuanVideoPipeline(
        tokenizer=llama,
        text_encoder=LlamaModel(
            LlamaConfig(
                **_LANGUAGE_MODEL,
                vocab_size=len(llama),
                bos_token_id=1,
                eos_token_id=2,
                pad_token_id=3,
            )
        ).eval(),
        tokenizer_2=clip,
        text_encoder_2=CLIPTextModel(
            CLIPTextConfig(
                hidden_size=8,
                intermediate_size=16,
                num_attention_heads=2,
                num_hidden_layers=1,
                vocab_size=len(clip),
                projection_dim=8,
                bos_token_id=0,
                eos_token_id=1,
                pad_token_id=1,
            )
        ).eval(),
        vae=AutoencoderKLHunyuanVideo(
            latent_channels=4, block_out_channels=(4, 4, 4, 4), layers_per_block=1, norm_num_groups=2
        ).eval(),
        transformer=HunyuanVideoTransformer3DModel(
            **_DUAL_STREAM,
            in_channels=4,
            num_layers=1,
            num_single_layers=1,
            guidance_embeds=guidance_embeds,
            pooled_projection_dim=8,
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
    )


# HunyuanVideo 1.5

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def _qwen_tokenizer(system_message: str, crop_start: int) -> Qwen2Tokenizer:
    """Build a tokenizer that splits the conversation before the prompt into the tokens that the pipeline cuts off."""
    letters = sorted(set(string.printable) - set(string.whitespace))
    pieces = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *letters, "Ġ", "Ċ"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokens = Qwen2Tokenizer(vocab=vocabulary, merges=[], pad_token="<|endoftext|>", padding_side="right")
    tokens.chat_template = _CHAT_TEMPLATE
    before = f"<|im_start|>system\n{system_message}<|im_end|>\n<|im_start|>user\n"
    _add_tokens(tokens, _chunks(before, crop_start))
    tokens.model_max_length = crop_start + PROMPT_TOKENS
    return tokens


@seeded(0)
def hunyuan_video_15_pipeline(guidance_scale: float = 6.0) -> HunyuanVideo15Pipeline:
    """Build a pipeline like HunyuanVideo 1.5's for text-to-video at 480p."""
    embed = inspect.signature(HunyuanVideo15Pipeline._get_mllm_prompt_embeds).parameters
    qwen = _qwen_tokenizer(embed["system_message"].default, embed["crop_start"].default)
    byt5 = ByT5Tokenizer(model_max_length=PROMPT_TOKENS)
    return HunyuanVideo15Pipeline(
        tokenizer=qwen,
        text_encoder=Qwen2_5_VLTextModel(
            Qwen2_5_VLTextConfig(
                **_LANGUAGE_MODEL,
                num_key_value_heads=2,
                vocab_size=len(qwen),
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            )
        ).eval(),
        tokenizer_2=byt5,
        text_encoder_2=t5_encoder(len(byt5)),
        vae=AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8, 8),
            layers_per_block=1,
        ).eval(),
        transformer=HunyuanVideo15Transformer3DModel(
            **_DUAL_STREAM,
            in_channels=9,
            num_layers=2,
            text_embed_2_dim=T5_DIM,
            image_embed_dim=8,
            task_type="t2v",
        ).eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0),
        guider=ClassifierFreeGuidance(guidance_scale=guidance_scale),
    )


# Families for the contract test


def _load_adapter(pipe: HunyuanVideo15Pipeline, folder: Path) -> None:
    """Load the LoRA into the transformer, because this pipeline of diffusers has no `load_lora_weights`."""
    pipe.transformer.load_lora_adapter(
        str(folder), weight_name="pytorch_lora_weights.safetensors", use_safetensors=True
    )


def _frames_first(model: Any, latents: torch.Tensor) -> torch.Tensor:
    return latents.transpose(1, 2)


def _cogvideox(name: str, **kwargs: Any) -> TinyFamily:
    return TinyFamily(
        name=name,
        build=lambda: cogvideox_pipeline(**kwargs),
        size=(NUM_FRAMES, HEIGHT, WIDTH),
        illegal_sizes={
            (13, 16, 32): "num_frames=13:.*a multiple of 8 plus 1.*Use 9 or 17",
            (9, 24, 32): "height=24:.*Use 16 or 32",
            (9, 16, 8): "width=8:.*Use 16",
        },
        call={"output_type": "np"},
        pack=_frames_first,
        sigma_of=lambda model, timestep: (timestep + 1) / model.num_train_timesteps,
    )


_HUNYUAN_SIZES = {
    (8, 16, 32): "num_frames=8:.*a multiple of 4 plus 1.*Use 5 or 9",
    (9, 16, 40): "width=40:.*Use 32 or 48",
}

FAMILIES = [
    _cogvideox("cogvideox-2b"),
    _cogvideox("cogvideox-5b", rotary=True),
    _cogvideox("cogvideox-1.5-5b", rotary=True, patch_size_t=2),
    TinyFamily(
        name="hunyuan-video",
        build=hunyuan_video_pipeline,
        size=(NUM_FRAMES, HEIGHT, WIDTH),
        illegal_sizes={**_HUNYUAN_SIZES, (9, 24, 32): "height=24:.*Use 16 or 32"},
        options={"embedded_guidance": 1.0},  # the scale at which the test compares training with sampling
        call={"output_type": "np", "max_sequence_length": None},
    ),
    TinyFamily(
        name="hunyuan-video-1.5",
        build=hunyuan_video_15_pipeline,
        size=(NUM_FRAMES, HEIGHT, WIDTH),
        illegal_sizes={**_HUNYUAN_SIZES, (9, 8, 32): "height=8:.*Use 16"},
        settings={"guidance_scale": 6.0},
        call={"output_type": "np", "max_sequence_length": None, "guidance_scale": None},
        latents_of=lambda hidden_states: hidden_states[:, :4],
        load_lora=_load_adapter,
    ),
]
