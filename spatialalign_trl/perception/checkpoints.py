"""Checkpoints of perception models: found and checked before any work, loaded once when first used, released again."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.devices import default_device
from spatialalign_trl.errors import download_command, explain_hub_errors
from spatialalign_trl.files import read_json

if TYPE_CHECKING:
    import torch

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_WEIGHTS = "model.safetensors"
_INDEX = "model.safetensors.index.json"
# What is fetched of a Hub repository: nothing that would be unpickled, no original checkpoints beside the weights.
_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors"]


def require_torchvision(user: str) -> None:
    """
    Make sure that torchvision is installed.

    Args:
        user (`str`):
            Who needs it; opens the message.

    Raises:
        ImportError: when it is not.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ImportError(
            f"{user} needs the package torchvision to prepare frames, and it is not installed: "
            "`pip install torchvision`, in the build that matches your torch."
        )


def find_checkpoint(name: str | os.PathLike, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """
    The folder of a checkpoint, fetched from the Hub unless it is a local folder or cached. No weights are loaded.

    Args:
        name (`str` or `os.PathLike`):
            A folder that `save_pretrained` wrote, or a Hub id (`owner/name`).
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub. Has no meaning for a folder.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Fetch the repository's Python files too.

    Returns:
        `Path`: a folder that holds `config.json` and all weights as safetensors.

    Raises:
        FileNotFoundError: when there is no such folder, repository or revision, or files are missing in it.
        PermissionError: when the repository is gated.
        ConnectionError: when the Hub cannot be asked and the checkpoint is not in the local cache.
    """
    name = os.path.expanduser(os.fspath(name))
    if os.path.isdir(name):
        return _check_files(Path(name), name, "Write it with save_pretrained, or pass another folder or a Hub id.")
    if not _HUB_ID.match(name):
        raise FileNotFoundError(
            f"there is no checkpoint folder {name!r}, and it is no Hub id (owner/name) either. Check the path, or "
            "fetch a checkpoint with `hf download <owner>/<name> --local-dir <folder>`."
        )
    from huggingface_hub import snapshot_download

    files = [*_FILES, *(["*.py"] if trust_remote_code else [])]
    with explain_hub_errors(name, revision):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    return _check_files(folder, name, f"Fetch the rest with `{download_command(name, revision)}`.")


def _check_files(folder: Path, name: str, remedy: str) -> Path:
    missing = [] if (folder / "config.json").is_file() else ["config.json"]
    if (folder / _INDEX).is_file():
        shards = sorted(set(read_json(folder / _INDEX).get("weight_map", {}).values()))
        missing += [shard for shard in shards if not (folder / shard).is_file()]
    elif not (folder / _WEIGHTS).is_file():
        missing.append(_WEIGHTS)
    if missing:
        found = f" (found in {folder})" if str(folder) != name else ""
        raise FileNotFoundError(
            f"the checkpoint {name!r}{found} lacks {', '.join(missing)}; weights are read from safetensors only. "
            f"{remedy}"
        )
    return folder


def checkpoint_fingerprint(folder: Path) -> str:
    """
    A string that changes with any file of a checkpoint that could change its output.

    Of a snapshot in the Hub's cache it is the commit, which costs nothing; of any other folder the SHA-256 of its
    files, read once per process as long as their sizes and times stay.
    """
    if folder.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", folder.name):
        return f"{folder.parent.parent.name}@{folder.name}"
    suffixes = {".json", ".txt", ".model", ".jinja", ".safetensors", ".py"}
    files = sorted(path for path in folder.iterdir() if path.suffix in suffixes)
    digest = hashlib.sha256()
    for path in files:
        status = path.stat()
        digest.update(f"{path.name}:{_file_sha256(path, status.st_size, status.st_mtime_ns)};".encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def _file_sha256(path: Path, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """
    The precision to compute in: bfloat16 on CUDA (by autocast; the weights stay float32) and float32 elsewhere.

    Raises:
        ValueError: when the type is unknown, or lower than float32 on anything but CUDA.
    """
    import torch

    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    picked = known.get(str(dtype).removeprefix("torch."))
    if picked is None:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(known)}, or None to choose by the device.")
    if picked is not torch.float32 and device.type != "cuda":
        raise ValueError(f"dtype is {dtype!r}, but autocast is for CUDA only; use float32 on {device.type!r}.")
    return picked


class PretrainedModel:
    """
    One transformers model with its processor: checked early, loaded on first use, once, and released on demand.

    Args:
        checkpoint (`str` or `os.PathLike`):
            A local folder or a Hub id.
        classes (`Mapping[str, tuple[str, str]]`):
            `model_type` of the checkpoint's config -> names of the model's and the processor's class in
            `transformers`.
        device (`str` or `torch.device`, *optional*):
            By default this process's GPU, or the CPU where there is none.
        dtype (`str` or `torch.dtype`, *optional*):
            See [`pick_dtype`].
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Run the code that comes with the checkpoint. Only then may its `model_type` be another one.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        needs_torchvision (`bool`, *optional*, defaults to `True`):
            Whether its processor needs torchvision.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike,
        classes: Mapping[str, tuple[str, str]],
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        trust_remote_code: bool = False,
        revision: str | None = None,
        needs_torchvision: bool = True,
    ) -> None:
        self.checkpoint = os.fspath(checkpoint)
        self.classes = dict(classes)
        self.trust_remote_code = trust_remote_code
        self.revision = revision
        self.needs_torchvision = needs_torchvision
        self._device, self._dtype = device, dtype
        self._folder: Path | None = None
        self._loaded: tuple[Any, Any] | None = None

    @property
    def device(self) -> torch.device:
        import torch

        return default_device() if self._device is None else torch.device(self._device)

    @property
    def dtype(self) -> torch.dtype:
        return pick_dtype(self._dtype, self.device)

    @property
    def is_loaded(self) -> bool:
        return self._loaded is not None

    def prepare(self) -> Path:
        """
        Check everything that loading needs, fetching the files from the Hub when they are not here. Loads nothing.

        Returns:
            `Path`: the checkpoint's folder.

        Raises:
            ImportError: when torchvision is missing.
            FileNotFoundError, PermissionError, ConnectionError: as [`find_checkpoint`].
            ValueError: when the checkpoint is one of another kind of model, or for a wrong `dtype`.
        """
        if self._folder is not None:
            return self._folder
        self.dtype  # noqa: B018 - a wrong one is refused here, before the download
        if self.needs_torchvision:
            require_torchvision(f"the checkpoint {self.checkpoint!r}")
        folder = find_checkpoint(self.checkpoint, self.revision, self.trust_remote_code)
        kind = read_json(folder / "config.json").get("model_type")
        if kind not in self.classes and not self.trust_remote_code:
            raise ValueError(
                f"the checkpoint {self.checkpoint!r} is of the kind {kind!r}, but here {' or '.join(self.classes)} is "
                "needed. Pass another checkpoint, or trust_remote_code=True if it brings its own code that you trust."
            )
        self._folder = folder
        return folder

    def load(self) -> tuple[Any, Any]:
        """`(model, processor)`, the model in float32 on its device and ready to infer. Raises as [`prepare`]."""
        if self._loaded is None:
            import transformers

            folder = self.prepare()
            config = read_json(folder / "config.json")
            own_code = [name for name in config.get("auto_map", {}) if name.startswith("AutoModel")]
            model_class, processor_class = self.classes.get(
                config.get("model_type"), (own_code[0] if own_code else "AutoModel", "AutoProcessor")
            )
            options = {"trust_remote_code": True} if self.trust_remote_code else {}
            processor = getattr(transformers, processor_class).from_pretrained(folder, **options)
            model = getattr(transformers, model_class).from_pretrained(
                folder, dtype="float32", use_safetensors=True, **options
            )
            self._loaded = model.to(self.device).eval(), processor
        return self._loaded

    def release(self) -> None:
        """Forget the weights and free their memory; the next use loads them again."""
        if self._loaded is None:
            return
        self._loaded = None
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def autocast(self) -> AbstractContextManager:
        """Autocast to `dtype` on CUDA; nothing elsewhere."""
        import torch

        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    def fingerprint(self) -> str:
        """Weights and precision, as one string. Loads nothing. Raises as [`prepare`]."""
        return f"{checkpoint_fingerprint(self.prepare())} {str(self.dtype).removeprefix('torch.')}"


class RunsPretrained:
    """What a detector, follower, tracker or estimator that runs one pretrained model has of it."""

    pretrained: PretrainedModel

    def prepare(self) -> None:
        """Check that the model can be loaded, and fetch its files; raises as [`PretrainedModel.prepare`]."""
        self.pretrained.prepare()

    def fingerprint(self) -> str:
        """Weights and precision as one string; loads nothing."""
        return self.pretrained.fingerprint()

    def release(self) -> None:
        """Free the model's memory; the next use loads it again."""
        self.pretrained.release()
