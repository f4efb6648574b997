"""The rewards that come with spatialalign-trl, one file each (the reward protocol is in `spatialalign_trl/rewards/`).

The folder is installed as `spatialalign_rewards`. The rewards are registered under the entry-point group
`spatialalign_trl.rewards`, exactly as a third party's would be.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "dsr_score": [
            "DSRResult",
            "DSRScore",
            "GradedVideo",
            "score_box_arrays",
            "score_tracks",
            "score_tracks_batch",
        ],
        "motion": ["Motion", "motion_speed"],
        "sharpness": ["Sharpness"],
        "clip_similarity": ["CLIPSimilarity"],
        "clip_iqa": ["CLIPIQA"],
        "aesthetic": ["Aesthetic"],
        "identity": ["IdentityConsistency"],
        "vlm_judge": ["VLMJudge"],
        "scene_navigation": ["SceneNavigation"],
        "object_grounding": ["ObjectGrounding"],
    },
)
