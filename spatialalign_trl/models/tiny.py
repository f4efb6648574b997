"""The embedded tiny model: a real, trained WanPipeline of a few million weights that lies inside the package.

It is loaded by the same code as any other Wan pipeline; this file only knows where its folder is.
`recipes/pretrain_tiny.py` makes that folder.
"""

from __future__ import annotations

from pathlib import Path

TINY_MODEL = "tiny"
"""The name that [`load_video_model`] resolves to the embedded model."""


def tiny_model_path() -> Path:
    """
    Where the embedded model's pipeline folder is.

    Returns:
        `Path`: a folder that `DiffusionPipeline.from_pretrained` loads.

    Raises:
        FileNotFoundError: when the package was installed without its weights.
    """
    folder = Path(__file__).resolve().parent / "tiny_t2v"
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"the embedded model is not in {folder}; install the package again with its data files, or make the "
            "model with "
            "`python recipes/pretrain_tiny.py`."
        )
    return folder
