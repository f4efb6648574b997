"""Random CLIP, DINOv2 and LLaVA of the real transformers classes, as local checkpoints that load in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_perception import clip_tokenizer
from transformers import (
    AddedToken,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)

SIDE, PATCH = 32, 8
LAYERS = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def image_processor() -> CLIPImageProcessor:
    size = {"height": SIDE, "width": SIDE}
    return CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)


def _saved(model_class: type[PreTrainedModel], config, folder: Path, seed: int) -> str:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = model_class(config)
        for parameter in model.parameters():  # fresh weights are so small that all outputs are nearly the same
            if parameter.ndim > 1:
                parameter.data.mul_(3.0)
        model.eval().save_pretrained(folder)
    return str(folder)


def saved_clip(folder: Path, seed: int = 0) -> str:
    """Writes a checkpoint folder of CLIP and returns its path."""
    text = {**LAYERS, "vocab_size": 64, "max_position_embeddings": 77, "eos_token_id": 1, "bos_token_id": 0}
    vision = {**LAYERS, "image_size": SIDE, "patch_size": PATCH}
    tokenizer = CLIPTokenizer(vocab=clip_tokenizer().get_vocab(), merges=[], model_max_length=77)
    CLIPProcessor(image_processor(), tokenizer).save_pretrained(folder)
    return _saved(CLIPModel, CLIPConfig(text_config=text, vision_config=vision, projection_dim=16), folder, seed)


def saved_dinov2(folder: Path, seed: int = 0) -> str:
    """Writes a checkpoint folder of DINOv2 and returns its path."""
    BitImageProcessor(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, do_convert_rgb=True
    ).save_pretrained(folder)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=1, image_size=SIDE, patch_size=PATCH
    )
    return _saved(Dinov2Model, config, folder, seed)


def saved_llava(folder: Path, seed: int = 0) -> str:
    """Writes a checkpoint folder of LLaVA, an image-text-to-text model, and returns its path."""
    tokenizer = clip_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<image>", special=True)]})
    tokenizer.model_max_length = 4096
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    LlavaProcessor(
        image_processor(), tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE, num_additional_image_tokens=1,
    ).save_pretrained(folder)  # fmt: skip
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**LAYERS, image_size=SIDE, patch_size=PATCH),
        text_config=LlamaConfig(**LAYERS, vocab_size=len(tokenizer), max_position_embeddings=4096),
        image_token_index=image_token,
        image_seq_length=(SIDE // PATCH) ** 2,
    )
    return _saved(LlavaForConditionalGeneration, config, folder, seed)
