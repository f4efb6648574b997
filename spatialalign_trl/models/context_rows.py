"""What a row of a dataset says of a scene, as conditioning: context latents and their places in time, and cameras."""

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
    Rows with a context and a trajectory to conditioning tensors, for a model that puts context frames before its own.

    The columns of a row that condition it beside `prompt`, all of them optional:

        context            the recording: a video's path, bytes or undecoded `Video`, or its frames; as high
                           and wide as the video that is asked for
        context_indices    frame number in the recording of each of its frames; 0, 1, 2, ... by default
        camera_poses       one camera-to-world matrix a frame of the video that is asked for
        intrinsics         3x3 or (fx, fy, cx, cy), in pixels of the context's frames
        context_poses      one camera-to-world matrix a frame of the context; without them, the trajectory counts from
                           its own first camera

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
        """What of the model's options decides how a row is encoded."""
        return {"frames": self.context_frames, "layout": self.context_layout, "cameras": self.context_cameras}

    def row_content(self, row: Mapping[str, Any]) -> bytes:
        content = super().row_content(row)
        if all(row.get(name) is None for name in self.conditioning_columns):
            return content
        return content + json.dumps(self._row_options(), sort_keys=True).encode()

    def encode_rows(self, rows: Sequence[Mapping[str, Any]]) -> Conditioning:
        """
        See [`VideoModel.encode_rows`]; the columns are those of the class.

        Raises:
            ValueError: a column is not what it should be, or the rows do not have the same of them.
        """
        encoded = [{**self.encode_prompts([row["prompt"]]), **self._encode_scene(row)} for row in rows]
        for one in encoded[1:]:
            if set(one) != set(encoded[0]):
                raise ValueError(
                    f"rows of one batch have to have the same columns, but they differ in "
                    f"{sorted(set(one) ^ set(encoded[0]))}."
                )
        return {name: torch.cat([one[name] for one in encoded]) for name in encoded[0]}

    def _encode_scene(self, row: Mapping[str, Any]) -> Conditioning:
        """What a row says beside its prompt, with a batch dimension of 1, on the CPU."""
        scene: Conditioning = {}
        context = None if row.get("context") is None else frames_of(row["context"], "context")
        if context is None and row.get("camera_poses") is None:
            return scene
        if context is None:
            raise ValueError("camera_poses without context: the size of its frames says what the intrinsics mean")
        known = row.get("context_poses")
        known = None if known is None else as_poses(known, "context_poses", len(context))
        target = row.get("camera_poses")
        target = None if target is None else as_poses(target, "camera_poses")
        chosen = choose_context_frames(len(context), self.context_frames, known, target)
        if self.context_layout != "none":
            numbers = row.get("context_indices")
            numbers = list(range(len(context))) if numbers is None else [int(number) for number in numbers]
            if len(numbers) != len(context):
                raise ValueError(f"context_indices: {len(numbers)} numbers for {len(context)} frames of context")
            positions = context_positions(
                [numbers[i] for i in chosen],
                self._frames_per_latent,
                contiguous=self.context_layout == "contiguous",
            )
            latents = self.encode_video([context[i : i + 1] for i in chosen])  # (K, C, 1, h, w)
            scene[LATENTS] = latents.transpose(0, 2).cpu()
            scene[POSITIONS] = torch.tensor([positions])
            scene[SIGMA] = torch.zeros(1, len(chosen))
        if target is None:
            return scene
        if row.get("intrinsics") is None:
            raise ValueError("camera_poses without intrinsics: a row with a trajectory needs both")
        intrinsics = as_intrinsics(row["intrinsics"], *context.shape[1:3])
        origin = target[0] if known is None else known[-1]
        scene[CAMERAS] = pack_cameras(target, intrinsics, origin)[None]
        if self.context_cameras and self.context_layout != "none":
            if known is None:
                raise ValueError("context_cameras needs the column context_poses")
            scene[CONTEXT_CAMERAS] = pack_cameras(known[chosen], intrinsics, origin)[None]
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
        Conditioning in which some rows have no instruction, or no context: the null branches of guidance.

        Args:
            conditioning (`dict[str, torch.Tensor]`):
                From [`~SceneRowsMixin.encode_rows`].
            null (`dict[str, torch.Tensor]`):
                The null prompt's embedding, once or one a row.
            noise (`torch.Tensor` of the shape of `conditioning["context_latents"]`):
                Takes the place of the context that is left out, at diffusion time 1.
            instruction, context (`torch.Tensor` of shape `(batch,)`, `bool`):
                The rows that have none.
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
            own = conditioning[CONTEXT_CAMERAS]
            changed[CONTEXT_CAMERAS] = _where(context, torch.zeros_like(own), own)
        return changed


def _where(rows: torch.Tensor, yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
    return torch.where(rows.to(no.device).reshape(-1, *[1] * (no.ndim - 1)), yes, no)
