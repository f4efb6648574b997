"""Find and check the checkpoints of perception models before any work, load them once on first use, release them."""

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
# Files to download from a Hub repository: nothing that would be unpickled, and no original checkpoints.
_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "model*.safetensors"]


def require_torchvision(user: str) -> None:
    """
    Check that torchvision is installed.

    Args:
        user (`str`):
            Name of the component that needs it, the first words of the error message.

    Raises:
        ImportError: when it is not installed.
    """
    if importlib.util.find_spec("torchvision") is None:
        raise ImportError(
            f"{user} needs the package torchvision to prepare frames, but it is not installed. Install the build that "
            "matches your torch: `pip install torchvision`."
        )


def find_checkpoint(name: str | os.PathLike, revision: str | None = None, trust_remote_code: bool = False) -> Path:
    """
    Return the folder of a checkpoint, downloading it unless it is local or cached. No weights are loaded.

    Args:
        name (`str` or `os.PathLike`):
            A folder written by `save_pretrained`, or a Hub id (`owner/name`).
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub. Ignored for a local folder.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to download the repository's Python files too.

    Returns:
        `Path`: a folder with `config.json` and all weights as safetensors.

    Raises:
        FileNotFoundError: when the folder, repository or revision does not exist, or lacks files.
        PermissionError: when the repository is gated.
        ConnectionError: when the Hub cannot be reached and the checkpoint is not in the local cache.
    """
    name = os.path.expanduser(os.fspath(name))
    if os.path.isdir(name):
        return _check_files(Path(name), name, "Write it with save_pretrained, or pass another folder or a Hub id.")
    if not _HUB_ID.match(name):
        raise FileNotFoundError(
            f"there is no checkpoint folder {name!r}, and it is not a Hub id (owner/name) either. Check the path, or "
            "download a checkpoint with `hf download <owner>/<name> --local-dir <folder>`."
        )
    from huggingface_hub import snapshot_download

    files = [*_FILES, *(["*.py"] if trust_remote_code else [])]
    with explain_hub_errors(name, revision):
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=files))
    return _check_files(folder, name, f"Download the rest with `{download_command(name, revision)}`.")


def _check_files(folder: Path, name: str, remedy: str) -> Path:
    """Return the folder if it has a config and all weights, else raise."""
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
    Return a string that changes whenever a file changes that could affect the model's output.

    For a snapshot in the Hub's cache this is the commit, so no file is read. For any other folder it is a SHA-256 over
    its files, which are read once per process as long as their sizes and modification times stay the same.
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
    """Hash a file; its size and modification time only serve as cache keys."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def pick_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """
    Choose the precision of the computation: by default bfloat16 on CUDA (by autocast; weights stay float32), else
    float32.

    Args:
        dtype (`str` or `torch.dtype`, *optional*):
            `float32`, `bfloat16` or `float16`; `None` chooses by the device.
        device (`torch.device`):
            Where the model runs.

    Raises:
        ValueError: when the type is unknown, or lower than float32 on a device other than CUDA.
    """
    import torch

    if dtype is None:
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    picked = known.get(str(dtype).removeprefix("torch."))
    if picked is None:
        raise ValueError(f"dtype is {dtype!r}; it must be one of {', '.join(known)}, or None to choose by the device.")
    if picked is not torch.float32 and device.type != "cuda":
        raise ValueError(f"dtype is {dtype!r}, but autocast is for CUDA only. Use float32 on {device.type!r}.")
    return picked


class PretrainedModel:
    """
    A transformers model with its processor: checked early, loaded once on first use, and released on demand.

    Args:
        checkpoint (`str` or `os.PathLike`):
            A local folder or a Hub id.
        classes (`Mapping[str, tuple[str, str]]`):
            `model_type` in the checkpoint's config -> names of the model's and of the processor's class in
            `transformers`.
        device (`str` or `torch.device`, *optional*):
            Defaults to this process's GPU, or to the CPU if there is none.
        dtype (`str` or `torch.dtype`, *optional*):
            See [`pick_dtype`].
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to run the code that comes with the checkpoint. Required if its `model_type` is not in `classes`.
        revision (`str`, *optional*):
            Branch, tag or commit on the Hub.
        needs_torchvision (`bool`, *optional*, defaults to `True`):
            Whether the processor needs torchvision.
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
        Check everything that loading needs, downloading missing files from the Hub. No weights are loaded.

        Returns:
            `Path`: the checkpoint's folder.

        Raises:
            ImportError: when torchvision is missing.
            FileNotFoundError, PermissionError, ConnectionError: see [`find_checkpoint`].
            ValueError: when the checkpoint is of another kind of model, or `dtype` is invalid.
        """
        if self._folder is not None:
            return self._folder
        self.dtype  # noqa: B018 - raises for an invalid dtype, before the download
        if self.needs_torchvision:
            require_torchvision(f"the checkpoint {self.checkpoint!r}")
        folder = find_checkpoint(self.checkpoint, self.revision, self.trust_remote_code)
        kind = read_json(folder / "config.json").get("model_type")
        if kind not in self.classes and not self.trust_remote_code:
            raise ValueError(
                f"the checkpoint {self.checkpoint!r} is of the kind {kind!r}, but here {' or '.join(self.classes)} is "
                "needed. Pass another checkpoint, or trust_remote_code=True if it comes with code that you trust."
            )
        self._folder = folder
        return folder

    def load(self) -> tuple[Any, Any]:
        """
        Load the model and its processor, unless they are loaded already.

        Returns:
            `(model, processor)`: the model in evaluation mode, with float32 weights on its device.

        Raises:
            See [`PretrainedModel.prepare`].
        """
        if self._loaded is None:
            import transformers

            folder = self.prepare()
            config = read_json(folder / "config.json")
            # A checkpoint with code of its own names the Auto class that it can be loaded with.
            auto_classes = [name for name in config.get("auto_map", {}) if name.startswith("AutoModel")]
            model_class, processor_class = self.classes.get(
                config.get("model_type"), (auto_classes[0] if auto_classes else "AutoModel", "AutoProcessor")
            )
            options = {"trust_remote_code": True} if self.trust_remote_code else {}
            processor = getattr(transformers, processor_class).from_pretrained(folder, **options)
            model = getattr(transformers, model_class).from_pretrained(
                folder, dtype="float32", use_safetensors=True, **options
            )
            self._loaded = model.to(self.device).eval(), processor
        return self._loaded

    def release(self) -> None:
        """Free the memory of the weights; the next use loads them again."""
        if self._loaded is None:
            return
        self._loaded = None
        import torch

        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def autocast(self) -> AbstractContextManager:
        """Return a context that casts to `dtype` on CUDA and does nothing on other devices."""
        import torch

        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not torch.float32)

    def fingerprint(self) -> str:
        """Return weights and precision as one string, without loading the model. Raises as [`prepare`]."""
        return f"{checkpoint_fingerprint(self.prepare())} {str(self.dtype).removeprefix('torch.')}"


class RunsPretrained:
    """The methods that a detector, follower, tracker or estimator takes over from its single pretrained model."""

    pretrained: PretrainedModel

    def prepare(self) -> None:
        """Check that the model can be loaded, and download its files. Raises as [`PretrainedModel.prepare`]."""
        self.pretrained.prepare()

    def fingerprint(self) -> str:
        """Return weights and precision as one string, without loading the model."""
        return self.pretrained.fingerprint()

    def release(self) -> None:
        """Free the model's memory; the next use loads it again."""
        self.pretrained.release()
