"""Find the embedded tiny models: real, trained WanPipelines of a few million weights inside the package.

They are loaded by the same code as any other Wan pipeline. This file only knows their folders.
"""

from __future__ import annotations

from pathlib import Path

TINY_MODEL = "tiny"
"""The name that [`load_video_model`] resolves to the embedded text-to-video model."""

EMBEDDED_MODELS: dict[str, tuple[str, str]] = {
    TINY_MODEL: ("tiny_t2v", "recipes/pretrain_tiny.py"),
    "tiny_rooms": ("tiny_rooms", "recipes/pretrain_tiny_rooms.py"),
}
"""Name -> (its folder next to this file, the recipe that trains it).

`"tiny"` is the text-to-video model of the tiny world, `"tiny_rooms"` the context model of its rooms (load it with
`variant="context"`)."""


def tiny_model_path(name: str = TINY_MODEL) -> Path:
    """
    Return the pipeline folder of an embedded model.

    Args:
        name (`str`, *optional*, defaults to `"tiny"`):
            One of `EMBEDDED_MODELS`.

    Returns:
        `Path`: a folder that `DiffusionPipeline.from_pretrained` loads.

    Raises:
        FileNotFoundError: if the package was installed without its weights.
    """
    directory, recipe = EMBEDDED_MODELS[name]
    folder = Path(__file__).resolve().parent / directory
    if not (folder / "model_index.json").is_file():
        raise FileNotFoundError(
            f"the embedded model {name!r} is not in {folder}. Install the package again with its data files, or train "
            f"the model with `python {recipe}`."
        )
    return folder
