"""Encode a video on a limited number of cores and print the SHA-256 of the mp4.

Arguments: the frames as an .npy file, the number of cores, which the machine must have.
"""

import hashlib
import os
import sys

import numpy as np

# The encoder chooses its threads by the cores that it may use, so these are limited before it is imported.
cores = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, set(cores[: int(sys.argv[2])]))
assert len(os.sched_getaffinity(0)) == int(sys.argv[2]), f"{sys.argv[2]} of {len(cores)} cores"

from spatialalign_trl.video import encode_video  # noqa: E402

print(hashlib.sha256(encode_video(np.load(sys.argv[1]), 8)).hexdigest())
