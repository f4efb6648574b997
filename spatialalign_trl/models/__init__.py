"""Run text-to-video models: one file per family behind one small interface ([`VideoModel`]).

Names are resolved when they are first used, so that importing this package does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "encoding": ["Conditioning"],
        "settings": ["SamplingSettings"],
        "base": ["VideoModel"],
        "loading": ["ADAPTERS", "load_video_model"],
        "wan": ["WanVideoModel"],
        "wan_context": ["WanContextVideoModel"],
        "ltx": ["LTXVideoModel"],
        "cogvideox": ["CogVideoXVideoModel"],
        "hunyuan_video": ["HunyuanVideoModel", "HunyuanVideo15Model"],
        "tiny": ["TINY_MODEL", "tiny_model_path"],
    },
)
