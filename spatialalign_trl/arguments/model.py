"""Command-line arguments that name the model and its LoRA, and the code that loads them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from spatialalign_trl.errors import near_miss
from spatialalign_trl.models.ranges import Range, check_fields

if TYPE_CHECKING:
    import torch
    from peft import LoraConfig

    from spatialalign_trl.models.base import VideoModel

DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class ModelArguments:
    """Arguments that name the model to train, its LoRA, and how both are loaded."""

    REPLACES_DEFAULTS: ClassVar[dict[str, tuple[str, ...]]] = {
        "lora_path": ("lora_r", "lora_alpha", "lora_target_modules")
    }
    """Argument -> those that a recipe's default file no longer sets once a user gives it: they are nobody's wish."""

    model_name_or_path: str = field(
        default="tiny",
        metadata={"help": "'tiny' or 'tiny_rooms' (embedded), a Hub id, or a diffusers pipeline folder."},
    )
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    variant: str | None = field(
        default=None,
        metadata={
            "help": "What conditions the model in addition to its prompt: context, a recording of a scene and a "
            "camera trajectory (its options go into model_init_kwargs: context_frames, context_layout, guidance, "
            "context_cameras). None: nothing."
        },
    )
    dtype: str | None = field(
        default=None,
        metadata={
            "help": "dtype of the frozen base: float32, bfloat16, float16. None: bfloat16 on a GPU, else float32."
        },
    )
    lora_r: Annotated[int, Range(at_least=1, at_most=65_536)] = field(
        default=16, metadata={"help": "Rank of the LoRA."}
    )
    lora_alpha: Annotated[int, Range(at_least=1, at_most=1_000_000)] = field(
        default=16, metadata={"help": "The LoRA's effect is scaled by alpha / r."}
    )
    lora_target_modules: list[str] | None = field(
        default=None,
        metadata={
            "help": "Names of the modules that LoRA adapts, or the single word all-linear. None: the paper's targets "
            "(text embedder; keys and values of the cross-attention)."
        },
    )
    lora_path: str | None = field(
        default=None,
        metadata={
            "help": "A LoRA to continue training: a folder that training wrote, a safetensors file, or a Hub id. It "
            "keeps its own rank, alpha and targets. It is not merged, so the reference stays the base model."
        },
    )
    quantization: str | None = field(
        default=None,
        metadata={
            "help": "Quantise the frozen base (transformer and text encoder): bitsandbytes_8bit or bitsandbytes_4bit, "
            "with the extra [bitsandbytes] and a CUDA GPU. The reference is then the quantised base."
        },
    )
    attention_backend: str | None = field(
        default=None,
        metadata={
            "help": "native, xformers (the extra [xformers]), flash, or another of diffusers' names. It is "
            "tried out before use. None: diffusers' default, which is native."
        },
    )
    compile_blocks: str | None = field(
        default=None,
        metadata={"help": "Compile the transformer's repeated blocks with this compiler of torch, such as inductor."},
    )
    vae_tiling: bool = field(
        default=False,
        metadata={
            "help": "Encode and decode in overlapping tiles: less memory, slightly different pixels at the seams."
        },
    )
    vae_slicing: bool = field(default=False, metadata={"help": "Encode and decode one video of a batch at a time."})
    offload_encoders: bool = field(
        default=False,
        metadata={
            "help": "Keep the VAE and the text encoder in CPU memory while training, instead of reading them from "
            "disk before the next sampling; keep the text encoder there while videos are sampled, too."
        },
    )
    cpu_threads: Annotated[int | None, Range(at_least=1, at_most=4096)] = field(
        default=None,
        metadata={
            "help": "Threads of torch on a CPU. For a model as small as the embedded one, a second thread costs more "
            "than it gains. None: torch's default, one thread per core."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.dtype is not None and self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r}. {near_miss(self.dtype, DTYPES)}")
        if self.lora_target_modules == []:
            raise ValueError(
                "lora_target_modules=[]: a LoRA without targets trains nothing. Name at least one module, or leave it "
                "out for the model's default targets."
            )

    def load(self, **model_options: Any) -> VideoModel:
        """
        Load the model, with the LoRA at `lora_path` in it.

        Args:
            model_options (`Any`):
                Options of the model's family, such as `expert` of Wan 2.2 A14B (`model_init_kwargs` of the trainers'
                arguments).

        Raises:
            ValueError: For an unknown `variant`, `attention_backend`, `compile_blocks` or `quantization`, or
                one that this machine cannot run; if `variant` and `model_options` contradict each other; if
                `cpu_threads` is less than 1; if the file at `lora_path` is no LoRA of this model, or these
                arguments ask for another LoRA shape than its own.
            ImportError: For a missing package that one of them needs.
            RuntimeError: For an attention backend that is installed but fails.
        """
        import torch

        from spatialalign_trl.models import efficiency, load_video_model

        dtype = getattr(torch, self.dtype) if self.dtype else None
        if self.cpu_threads is not None:
            torch.set_num_threads(self.cpu_threads)
        if self.variant is not None:
            option = model_options.setdefault("variant", self.variant)
            if option != self.variant:
                raise ValueError(
                    f"variant={self.variant!r}, but model_init_kwargs has {option!r}. Leave one of them out."
                )
        options = {**model_options, **self._checked_efficiency(dtype)}
        model = load_video_model(self.model_name_or_path, torch_dtype=dtype, revision=self.model_revision, **options)
        model.offload_encoders = self.offload_encoders
        model.save_vae_memory(tiling=self.vae_tiling, slicing=self.vae_slicing)
        if self.lora_path is not None:
            self._continue_from(self.lora_path, model)
        if self.attention_backend is not None:
            efficiency.set_attention_backend(model, self.attention_backend)
        if self.compile_blocks is not None:
            efficiency.compile_blocks(model, self.compile_blocks)
        return model

    def _checked_efficiency(self, dtype: torch.dtype | None) -> dict[str, Any]:
        """Refuse what cannot work on this machine before gigabytes are loaded; return the options for loading."""
        from spatialalign_trl.devices import default_device
        from spatialalign_trl.models import efficiency, quantization

        if self.attention_backend is not None:
            efficiency.check_attention_backend(self.attention_backend, default_device())
        if self.compile_blocks is not None:
            efficiency.check_compile(self.compile_blocks)
        if self.quantization is None:
            return {}
        return {"quantization_config": quantization.quantization_config(self.quantization, dtype)}

    def _continue_from(self, path: str, model: VideoModel) -> None:
        """Load the LoRA to continue training; refuse arguments that ask for another shape than its own."""
        from spatialalign_trl.models.lora_keys import refuse_unreadable_lora

        refuse_unreadable_lora(path)
        model.load_lora(path)
        config = next(iter(model.transformer.peft_config.values()))
        for name, loaded in (("lora_r", config.r), ("lora_alpha", config.lora_alpha)):
            requested, default = getattr(self, name), type(self).__dataclass_fields__[name].default
            if requested not in (loaded, default):
                raise ValueError(
                    f"{name}={requested}, but the LoRA at lora_path={path!r} has {loaded} and keeps it. A new LoRA in "
                    "addition to it would need the old one merged into the base, which changes the base's outputs and "
                    f"results in a LoRA that fits no published model. Leave {name} out."
                )
        if self.lora_target_modules is not None:
            raise ValueError(
                f"lora_target_modules={self.lora_target_modules}, but the LoRA at lora_path={path!r} has its own "
                "targets and keeps them. Leave lora_target_modules out."
            )

    def lora_config(self, model: VideoModel) -> LoraConfig | None:
        """
        Return the configuration of a new LoRA.

        Args:
            model ([`VideoModel`]):
                The model that the LoRA adapts.

        Returns:
            `LoraConfig` or `None`: The configuration; `None` if the model carries the LoRA at `lora_path`.
        """
        if self.lora_path is not None:
            return None
        from spatialalign_trl.trainer.lora import ALL_LINEAR, default_lora_config

        targets = ALL_LINEAR if self.lora_target_modules == [ALL_LINEAR] else self.lora_target_modules
        return default_lora_config(model, r=self.lora_r, alpha=self.lora_alpha, targets=targets)
