"""Build random detectors and trackers of the real transformers classes, small enough for unit tests.

The `saved_` functions write a checkpoint folder that `from_pretrained` reads like a downloaded one: config,
safetensors, processor and tokenizer. The configurations are the smallest that the classes accept: Grounding DINO needs
a width divisible by 32 and two decoder layers (tied heads), SAM 2 needs a width above 64 (its memory has 64 channels).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tiny_text import clip_tokenizer, seeded
from transformers import (
    BertConfig,
    BertTokenizer,
    CLIPTextConfig,
    EdgeTamVideoConfig,
    EdgeTamVideoModel,
    GroundingDinoConfig,
    GroundingDinoForObjectDetection,
    GroundingDinoImageProcessor,
    GroundingDinoProcessor,
    PreTrainedModel,
    Sam2ImageProcessor,
    Sam2VideoConfig,
    Sam2VideoModel,
    Sam2VideoProcessor,
    Sam2VideoVideoProcessor,
    Sam2VisionConfig,
    Sam3Config,
    Sam3ImageProcessor,
    Sam3TrackerVideoConfig,
    Sam3VideoConfig,
    Sam3VideoModel,
    Sam3VideoProcessor,
    Sam3VisionConfig,
    SwinConfig,
)

# Grounding DINO's code splits the text at these token ids of BERT's vocabulary, so the tiny one has to use them too.
CLS, SEP, DOT, QUESTION = 101, 102, 1012, 1029
WORDS = ["cat", "bench", "fire", "hydra", "##nt", "ham", "##ster", "fox", "stump", "box", "and"]
WORDS += ["t", "-", "shirt", "pin", "##ata", "guinea", "pig"]

SAM2_IMAGE, SAM3_IMAGE = 128, 56


def random_video(num_frames: int = 4, height: int = 48, width: int = 80, seed: int = 0) -> np.ndarray:
    """Return a video of noise with a bright square that moves to the right."""
    generator = np.random.default_rng(seed)
    video = generator.integers(0, 90, (num_frames, height, width, 3), dtype=np.uint8)
    for k in range(num_frames):
        video[k, 10:30, 5 + 2 * k : 25 + 2 * k] = (230, 190, 40)
    return video


def bert_tokenizer() -> BertTokenizer:
    """Build a WordPiece tokenizer that splits "hydrant" and "hamster" into two pieces, as BERT's does."""
    vocabulary = [f"[unused{k}]" for k in range(1100)]
    vocabulary[0], vocabulary[100], vocabulary[CLS], vocabulary[SEP] = "[PAD]", "[UNK]", "[CLS]", "[SEP]"
    vocabulary[103], vocabulary[DOT], vocabulary[QUESTION] = "[MASK]", ".", "?"
    vocabulary[200 : 200 + len(WORDS)] = WORDS
    return BertTokenizer(vocab={word: k for k, word in enumerate(vocabulary)}, do_lower_case=True)


def grounding_dino(seed: int = 0) -> GroundingDinoForObjectDetection:
    swin = SwinConfig(
        embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2], window_size=2, image_size=64, out_indices=[2, 3, 4]
    )
    text = BertConfig(
        vocab_size=1100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    config = GroundingDinoConfig(
        backbone_config=swin,
        text_config=text,
        d_model=32,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        num_queries=20,
        disable_custom_kernels=True,
    )
    return _seeded(GroundingDinoForObjectDetection, config, seed)


def _sam2_vision() -> Sam2VisionConfig:
    return Sam2VisionConfig(
        backbone_config={
            "hidden_size": 8,
            "image_size": [SAM2_IMAGE, SAM2_IMAGE],
            "blocks_per_stage": [1, 1, 2, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [4, 2, 4, 2],
            "global_attention_blocks": [3],
            "model_type": "sam2_hiera_det_model",
        },
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[SAM2_IMAGE // 4] * 2, [SAM2_IMAGE // 8] * 2, [SAM2_IMAGE // 16] * 2],
        fpn_hidden_size=128,
    )


_SAM2_WIDTHS = {
    "image_size": SAM2_IMAGE,
    "memory_attention_hidden_size": 128,
    "memory_attention_num_layers": 1,
    "memory_attention_rope_feat_sizes": [SAM2_IMAGE // 16] * 2,
    "memory_encoder_hidden_size": 128,
    "mask_downsampler_embed_dim": 128,
    "memory_fuser_num_layers": 1,
    "memory_fuser_embed_dim": 128,
    "memory_fuser_intermediate_dim": 32,
    "prompt_encoder_config": {"hidden_size": 128, "image_size": SAM2_IMAGE, "patch_size": 16},
    "mask_decoder_config": {
        "hidden_size": 128, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 32, "iou_head_depth": 2,
    },
}  # fmt: skip


def sam2_video(seed: int = 0) -> Sam2VideoModel:
    config = Sam2VideoConfig(
        vision_config=_sam2_vision(), memory_attention_feed_forward_hidden_size=32, **_SAM2_WIDTHS
    )
    return _always_present(_seeded(Sam2VideoModel, config, seed))


def edgetam_video(seed: int = 0) -> EdgeTamVideoModel:
    """Build EdgeTAM with SAM 2's image encoder, because its own encoder needs the package timm."""
    config = EdgeTamVideoConfig(
        vision_config=_sam2_vision(),
        memory_attention_mlp_hidden_size=32,
        memory_attention_rope_k_sizes=[4, 4],
        perceiver_resampler_num_latents=16,
        perceiver_resampler_num_latents_2d=16,
        **_SAM2_WIDTHS,
    )
    return _always_present(_seeded(EdgeTamVideoModel, config, seed))


def _always_present(model: PreTrainedModel) -> PreTrainedModel:
    """Make the model predict that the object is present: with random weights, some masks would be empty."""
    model.mask_decoder.pred_obj_score_head.proj_out.bias.data.fill_(10.0)
    return model


def sam3_video(seed: int = 0) -> Sam3VideoModel:
    """Build a SAM 3 that finds one object for each word: it has one query, and all scores pass its thresholds of 0."""
    vision = Sam3VisionConfig(
        backbone_config={
            "model_type": "sam3_vit_model",
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": SAM3_IMAGE,
            "patch_size": 14,
            "window_size": 2,
            "global_attn_indexes": [1],
            "pretrain_image_size": 28,
        },
        fpn_hidden_size=128,
        backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
    )
    text = CLIPTextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, projection_dim=32, num_hidden_layers=1,
        num_attention_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    layers = {"hidden_size": 128, "num_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    detector = Sam3Config(
        vision_config=vision,
        text_config=text,
        geometry_encoder_config=layers,
        detr_encoder_config=layers,
        detr_decoder_config={**layers, "num_queries": 1},
        mask_decoder_config={"hidden_size": 128, "num_attention_heads": 2},
    )
    widths = {
        name: value for name, value in _SAM2_WIDTHS.items() if name not in ("image_size", "prompt_encoder_config")
    }
    tracker = Sam3TrackerVideoConfig(
        vision_config=vision,
        image_size=SAM3_IMAGE,
        memory_attention_feed_forward_hidden_size=32,
        prompt_encoder_config={"hidden_size": 128, "image_size": SAM3_IMAGE, "patch_size": 14},
        **widths,
    )
    config = Sam3VideoConfig(
        detector_config=detector,
        tracker_config=tracker,
        low_res_mask_size=16,
        score_threshold_detection=0.0,
        new_det_thresh=0.0,
        hotstart_delay=2,
        hotstart_unmatch_thresh=2,
        hotstart_dup_thresh=2,
    )
    model = _seeded(Sam3VideoModel, config, seed)
    _always_present(model.tracker_model)
    return model


def _seeded(model_class: type[PreTrainedModel], config, seed: int) -> PreTrainedModel:
    with seeded(seed):
        model = model_class(config)
        # Scale up the initial weights. They are so small that outputs would be nearly the same for all frames.
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.data.mul_(3.0)
        return model.eval()


def saved_grounding_dino(folder: Path, seed: int = 0) -> str:
    """Write a checkpoint folder of Grounding DINO and return its path."""
    grounding_dino(seed).save_pretrained(folder)
    images = GroundingDinoImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    GroundingDinoProcessor(images, bert_tokenizer()).save_pretrained(folder)
    return str(folder)


def _saved_with_processor(model: PreTrainedModel, folder: Path) -> str:
    """Write a model with SAM 2's processor."""
    size = {"height": SAM2_IMAGE, "width": SAM2_IMAGE}
    model.save_pretrained(folder)
    Sam2VideoProcessor(Sam2ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size)).save_pretrained(folder)
    return str(folder)


def saved_sam2(folder: Path, seed: int = 0) -> str:
    """Write a checkpoint folder of SAM 2 and return its path."""
    return _saved_with_processor(sam2_video(seed), folder)


def saved_edgetam(folder: Path, seed: int = 0) -> str:
    """Write a checkpoint folder of EdgeTAM and return its path."""
    return _saved_with_processor(edgetam_video(seed), folder)


def saved_sam3(folder: Path, seed: int = 0) -> str:
    """Write a checkpoint folder of SAM 3 and return its path."""
    sam3_video(seed).save_pretrained(folder)
    size = {"height": SAM3_IMAGE, "width": SAM3_IMAGE}
    processor = Sam3VideoProcessor(Sam3ImageProcessor(size=size), Sam2VideoVideoProcessor(size=size), clip_tokenizer())
    processor.save_pretrained(folder)
    return str(folder)
