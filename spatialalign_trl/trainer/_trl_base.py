"""TRL's base trainer and base config: the only module that imports them.

Both are underscore-private in TRL and may move. Should they, the small stand-ins below keep the same attributes and
defaults on top of transformers, and nothing else in the library changes.
"""

from dataclasses import dataclass, field
from typing import Any

try:
    from trl.trainer.base_config import _BaseConfig as BaseConfig
    from trl.trainer.base_trainer import _BaseTrainer as BaseTrainer

    IS_TRL_BASE = True
except ImportError:
    from transformers import Trainer, TrainingArguments

    IS_TRL_BASE = False

    @dataclass
    class BaseConfig(TrainingArguments):
        """Stand-in for TRL's `_BaseConfig`: the defaults that TRL's trainers share."""

        logging_steps: float = field(default=10, metadata={"help": "Log every X update steps."})
        gradient_checkpointing: bool = field(
            default=True, metadata={"help": "Recompute activations in the backward pass to save memory."}
        )
        bf16: bool | None = field(default=None, metadata={"help": "Whether to use bf16 mixed precision."})

        def __post_init__(self) -> None:
            self.bf16 = not self.fp16 if self.bf16 is None else self.bf16
            super().__post_init__()

    class BaseTrainer(Trainer):
        """Stand-in for TRL's `_BaseTrainer`: its class attributes, and no telemetry."""

        loss_is_scaled_for_ga: bool | None = None
        _tag_names: list[str] = []
        _name = "Base"
        _paper: dict[str, Any] = {}
        _template_file: str | None = None


__all__ = ["IS_TRL_BASE", "BaseConfig", "BaseTrainer"]
