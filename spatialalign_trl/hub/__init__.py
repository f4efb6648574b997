"""Push datasets and LoRAs to the Hub, and retry pushes that fail temporarily. Names are resolved on first use."""

from importlib import import_module
from typing import Any

import lazy_loader

_own_name, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={"pushing": ["PushFailed", "check_hub_access", "check_repo_name", "push_dataset_folder"]},
)

# These moved to `online`, which may import this room but not the other way round. The names stay importable from here.
_MOVED = {
    "RoundSummary": "spatialalign_trl.online.preference_card",
    "preference_card": "spatialalign_trl.online.preference_card",
    "write_pairs": "spatialalign_trl.online.preference_files",
    "write_samples": "spatialalign_trl.online.preference_files",
}


def __getattr__(name: str) -> Any:
    return getattr(import_module(_MOVED[name]), name) if name in _MOVED else _own_name(name)
