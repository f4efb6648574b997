"""The rewards that come with spatialalign-trl, one small file each. The folder is installed as `spatialalign_rewards`.

They register under the entry-point group `spatialalign_trl.rewards`, exactly as a third party's would.
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
