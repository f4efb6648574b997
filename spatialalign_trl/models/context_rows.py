"""Turn the rows of a scene dataset into conditioning: context latents, their positions in time, and cameras."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch

from spatialalign_trl.models.context import (
    as_intrinsics,
    as_poses,
    choose_context_frames,
    context_positions,
    pack_cameras,
)
from spatialalign_trl.models.encoding import Conditioning
from spatialalign_trl.video import frames_of

ContextLayout = Literal["non_contiguous", "contiguous", "none"]

LATENTS, POSITIONS, SIGMA = "context_latents", "context_positions", "context_sigma"
CAMERAS, CONTEXT_CAMERAS = "cameras", "context_cameras"


class SceneRowsMixin:
    """
    Encoding of rows with a context and a trajectory, for a model that puts context frames before its own.

    The columns of a row that condition the model in addition to `prompt`, all optional:

        context            the recording: a video's path, bytes or undecoded `Video`, or its frames; of the height
                           and width of the requested video
        context_indices    number in the recording of each of the context's frames; 0, 1, 2, ... by default
        camera_poses       one camera-to-world matrix per frame of the requested video
        intrinsics         3x3 or (fx, fy, cx, cy), in pixels of the context's frames
        context_poses      one camera-to-world matrix per frame of the context; without it, the trajectory is relative
                           to its own first camera

    Conditioning tensors (batch first): `context_latents` (C, K, h, w), `context_positions` (K), `context_sigma` (K; 0
    is clean, 1 is noise), `cameras` (frames, 16), and with `context_cameras` (K, 16).
    """

    conditioning_columns: ClassVar[tuple[str, ...]] = (
        "context", "context_indices", "camera_poses", "intrinsics", "context_poses",
    )  # fmt: skip
    context_frames: int | None
    context_layout: ContextLayout
    context_cameras: bool

    @property
    def _frames_per_latent(self) -> int:
        return self._vae_strides()[0]

    def _row_options(self) -> dict[str, Any]:
        """Return the options of the model that decide how a row is encoded."""
        return {"frames": self.context_frames, "layout": self.context_layout, "cameras": self.context_cameras}

    def row_content(self, row: Mapping[str, Any]) -> bytes:
        """Return bytes that identify the encoding of a row. See [`VideoModel.row_content`]."""
        content = super().row_content(row)
        if all(row.get(name) is None for name in self.conditioning_columns):
            return content
        return content + json.dumps(self._row_options(), sort_keys=True).encode()

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Conditioning:
        """
        Embed the prompts and scenes of rows. See [`VideoModel.encode_rows`]; the class lists the columns.

        Args:
            rows (`list[dict]`):
                At least one row, each with a `prompt` and the same of the other columns.

        Returns:
            `dict[str, torch.Tensor]`: the conditioning tensors that the class lists, and those of the prompts.

        Raises:
            ValueError: if a column has the wrong content, or the rows have different columns.
        """
        encoded = [{**self.encode_prompts([row["prompt"]]), **self._encode_scene(row)} for row in rows]
        for conditioning in encoded[1:]:
            if set(conditioning) != set(encoded[0]):
                raise ValueError(
                    f"the rows of a batch must have the same columns, but they differ in "
                    f"{sorted(set(conditioning) ^ set(encoded[0]))}. Encode rows with different columns separately."
                )
        return {name: torch.cat([conditioning[name] for conditioning in encoded]) for name in encoded[0]}

    def _encode_scene(self, row: Mapping[str, Any]) -> Conditioning:
        """Return the conditioning of a row apart from its prompt, with a batch dimension of 1, on the CPU."""
        # 1. Read the context and the poses
        scene: Conditioning = {}
        context = None if row.get("context") is None else frames_of(row["context"], "context")
        if context is None and row.get("camera_poses") is None:
            return scene
        if context is None:
            raise ValueError(
                "camera_poses without context: the intrinsics are in pixels of the context's frames. Add the column "
                "context."
            )
        context_poses = row.get("context_poses")
        context_poses = None if context_poses is None else as_poses(context_poses, "context_poses", len(context))
        target_poses = row.get("camera_poses")
        target_poses = None if target_poses is None else as_poses(target_poses, "camera_poses")

        # 2. Choose and encode the context frames
        chosen = choose_context_frames(len(context), self.context_frames, context_poses, target_poses)
        if self.context_layout != "none":
            numbers = row.get("context_indices")
            numbers = list(range(len(context))) if numbers is None else [int(number) for number in numbers]
            if len(numbers) != len(context):
                raise ValueError(
                    f"context_indices: {len(numbers)} numbers for {len(context)} frames of context. Pass one number "
                    "per frame."
                )
            positions = context_positions(
                [numbers[i] for i in chosen],
                self._frames_per_latent,
                contiguous=self.context_layout == "contiguous",
            )
            latents = self.encode_video([context[i : i + 1] for i in chosen])  # (K, C, 1, h, w)
            scene[LATENTS] = latents.transpose(0, 2).cpu()
            scene[POSITIONS] = torch.tensor([positions])
            scene[SIGMA] = torch.zeros(1, len(chosen))
        tells_context = self.context_cameras and self.context_layout != "none"
        if target_poses is None and not tells_context:
            return scene

        # 3. Pack the cameras, relative to the context's last frame (or the first target, without context poses)
        if tells_context and context_poses is None:
            raise ValueError("context_cameras=True: needs the column context_poses. Add it, or set it to False.")
        if row.get("intrinsics") is None:
            poses = "context_poses" if target_poses is None else "camera_poses"
            raise ValueError(f"{poses} without intrinsics: a row with cameras needs both columns.")
        intrinsics = as_intrinsics(row["intrinsics"], *context.shape[1:3])
        origin = target_poses[0] if context_poses is None else context_poses[-1]
        if target_poses is not None:
            scene[CAMERAS] = pack_cameras(target_poses, intrinsics, origin)[None]
        if tells_context:
            scene[CONTEXT_CAMERAS] = pack_cameras(context_poses[chosen], intrinsics, origin)[None]
        return scene

    def nulled(
        self,
        conditioning: Conditioning,
        null: Conditioning,
        noise: torch.Tensor,
        *,
        instruction: torch.Tensor,
        context: torch.Tensor,
    ) -> Conditioning:
        """
        Remove the instruction or the context from some rows, for the null branches of guidance.

        Args:
            conditioning (`dict[str, torch.Tensor]`):
                From [`~SceneRowsMixin.encode_rows`].
            null (`dict[str, torch.Tensor]`):
                The null prompt's embedding, either once or once per row.
            noise (`torch.Tensor` of the shape of `conditioning["context_latents"]`):
                Replaces the removed context, at diffusion time 1.
            instruction, context (`torch.Tensor` of shape `(batch,)`, `bool`):
                The rows from which the instruction or the context is removed.

        Returns:
            `dict[str, torch.Tensor]`: the changed conditioning, in a new dict.
        """
        changed = dict(conditioning)
        for name, tensor in null.items():
            changed[name] = _where(instruction, tensor.to(conditioning[name]), conditioning[name])
        if CAMERAS in conditioning:
            changed[CAMERAS] = _where(instruction, torch.zeros_like(conditioning[CAMERAS]), conditioning[CAMERAS])
        if LATENTS in conditioning:
            changed[LATENTS] = _where(context, noise.to(conditioning[LATENTS]), conditioning[LATENTS])
            changed[SIGMA] = _where(context, torch.ones_like(conditioning[SIGMA]), conditioning[SIGMA])
        if CONTEXT_CAMERAS in conditioning:
            cameras = conditioning[CONTEXT_CAMERAS]
            changed[CONTEXT_CAMERAS] = _where(context, torch.zeros_like(cameras), cameras)
        return changed


def _where(rows: torch.Tensor, replacement: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Replace the values of some rows."""
    return torch.where(rows.to(values.device).reshape(-1, *[1] * (values.ndim - 1)), replacement, values)
