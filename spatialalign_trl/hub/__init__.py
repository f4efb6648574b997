"""Push datasets and LoRAs to the Hub, and retry pushes that fail temporarily. Names are resolved on first use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pushing": ["PushFailed", "check_hub_access", "check_repo_name", "push_dataset_folder"],
    },
)
