"""Record what a folder of samples was sampled with, where a sample's name does not say so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from spatialalign_trl.files import read_json, write_json
from spatialalign_trl.models.sources import model_fingerprint

if TYPE_CHECKING:
    from spatialalign_trl.models.base import VideoModel
    from spatialalign_trl.rollout.store import SampleStore

ORIGIN_FILE = "models.json"
"""Model name -> fingerprint of its files, type of its weights, and what else changes the numbers that it computes."""


def check_origin(store: SampleStore, model: VideoModel, tag: str = "") -> None:
    """
    Record with which model a store is filled, or compare it with the model of the same name that filled it before.

    A sample is named by the model's name, among others, so samples of changed weights would be taken for each other.

    Args:
        store ([`SampleStore`]):
            The store that the model is about to fill.
        model ([`VideoModel`]):
            The model.
        tag (`str`, *optional*):
            What the samples' `policy_revision` ends with, if it names what else they depend on.

    Raises:
        ValueError: if the store was filled by other weights, or in another precision, under the same name.
    """
    if not model.name_or_path:
        return
    file = store.directory / ORIGIN_FILE
    recorded: dict[str, Any] = read_json(file) if file.is_file() else {}
    now = {
        "model_files": model_fingerprint(model.name_or_path, model.revision),
        "dtype": str(model.dtype).removeprefix("torch."),
        **model.computation,
    }
    now = {name: value for name, value in json.loads(json.dumps(now, default=str)).items() if value is not None}
    name = f"{model.name_or_path}{tag}"
    there = recorded.get(name)
    if there is None:
        write_json(file, recorded | {name: now})
    elif there != now:
        differing = [key for key in sorted({*there, *now}) if there.get(key) != now.get(key)]
        lines = "\n".join(f"  {key}: {there.get(key)!r} there, {now.get(key)!r} now" for key in differing)
        raise ValueError(
            f"{store.directory} holds samples of {name!r} that were sampled otherwise:\n{lines}\n"
            "Under the same name they would be mixed. Use another --samples_dir (and keep this one), or the model as "
            "it was."
        )
