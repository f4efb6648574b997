"""Estimate the camera poses of a video relative to a recorded context.

`estimator` defines the protocol and looks up estimators by name; the other modules implement ours. Names are imported
when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "estimator": [
            "CallableEstimator",
            "CameraEstimate",
            "PoseEstimator",
            "Sightings",
            "check_intrinsics",
            "check_poses",
            "get_pose_estimator",
        ],
    },
)
