"""Teach a context-conditioned video model to find a named object in a scene, from its own samples.

Every task is a recording of a scene and an instruction ("Find the green plant."). The model plans its path itself. The
reward measures whether the video ends with the real object in view, at its real place (`rewards/object_grounding.py`).
Everything else is as in `recipes/video4spatial_navigation.py`.

    accelerate launch recipes/video4spatial_grounding.py
    accelerate launch recipes/video4spatial_grounding.py \
        --config recipes/configs/video4spatial_grounding_wan2.1_1.3b.yaml

Without `--config` it runs `recipes/configs/video4spatial_grounding_tiny.yaml`. Flags override the YAML. Running the
same command again continues an interrupted run.

Simplified: as in `recipes/video4spatial_navigation.py`. Any path that finds the object is right, so PSNR against the
one known answer says little here.
"""

from __future__ import annotations

from pathlib import Path

from video4spatial_navigation import launch

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "video4spatial_grounding_tiny.yaml"

if __name__ == "__main__":
    launch(DEFAULT_CONFIG)
