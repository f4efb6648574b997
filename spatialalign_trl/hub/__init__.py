"""What goes to the Hub while a run is at work: preference datasets, pushed again when a push fails, and never lost."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "pushing": ["PushFailed", "check_hub_access", "check_repo_name", "push_dataset_folder"],
    },
)
