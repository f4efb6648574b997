"""Sample videos from a policy for every prompt and seed, and store them on disk.

`sampler` does the sampling, `store` keeps the samples, and `video_names` reads prompt ids and seeds from file names.
Names are resolved on first use, so that importing this package does not import torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__, submod_attrs={"store": ["Sample", "SampleStore"], "sampler": ["noise_seed", "roll_out"]}
)
