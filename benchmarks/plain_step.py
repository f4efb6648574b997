"""The reference for `training.py`: a plain step of zeroth-order regularised Diffusion-DPO on Wan.

The reference policy is a copy of the whole transformer. Chosen and rejected videos go through the policy and through
the reference one after the other, so a step has four forward passes. Nothing of the library is used.
"""

from __future__ import annotations

import copy
from typing import TypeAlias

import torch
import torch.nn.functional as F
from diffusers import WanTransformer3DModel
from peft import LoraConfig, get_peft_model
from torch import Tensor

Batch: TypeAlias = dict[str, Tensor]
"""`chosen` and `rejected` (batch, channels, frames, height, width) and `prompt_embeds` (batch, tokens, text dim)."""


class PlainStep:
    """A trainer with a copied reference network.

    Args:
        transformer (`WanTransformer3DModel`):
            Network to train. It is copied for the reference, then the LoRA is added.
        lora (`LoraConfig`):
            LoRA of the policy.
        learning_rate (`float`):
            Learning rate of torch's AdamW, without weight decay.
        shift (`float`, *optional*, defaults to `5.0`):
            `k` in `s = k*u / (1 + (k-1)*u)`.
        autocast (`bool`, *optional*, defaults to `False`):
            Compute in bfloat16.
    """

    beta, zeroth_order_weight, margin_clip, max_grad_norm = 1.0, 0.5, 5.0, 1.0

    def __init__(
        self,
        transformer: WanTransformer3DModel,
        lora: LoraConfig,
        *,
        learning_rate: float,
        shift: float = 5.0,
        autocast: bool = False,
    ) -> None:
        self.reference = copy.deepcopy(transformer).requires_grad_(False).eval()
        self.policy = get_peft_model(transformer, lora).train()
        self.trainable = [weight for weight in self.policy.parameters() if weight.requires_grad]
        self.learning_rate, self.shift, self.autocast = learning_rate, shift, autocast
        self.new_optimizer()

    def new_optimizer(self) -> None:
        """Replace the optimizer by a new one."""
        self.optimizer = torch.optim.AdamW(self.trainable, lr=self.learning_rate, weight_decay=0.0)

    def draw(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw a noise level for each pair and noise for each video."""
        u = torch.randint(1, 1001, (len(batch["chosen"]),), device=batch["chosen"].device) / 1000
        sigma = self.shift * u / (1 + (self.shift - 1) * u)
        return sigma, {side: torch.randn_like(batch[side]) for side in ("chosen", "rejected")}

    def loss(self, batch: Batch, sigma: Tensor, noise: dict[str, Tensor]) -> Tensor:
        """Compute the loss of a batch with given draws."""
        s = sigma.view(-1, 1, 1, 1, 1)
        errors, reference_errors, anchor = {}, {}, 0.0
        # The anchor keeps the policy near the reference on chosen and rejected videos alike.
        for side in ("chosen", "rejected"):
            noisy = (1 - s) * batch[side] + s * noise[side]
            target = noise[side] - batch[side]
            velocity = self.predict(self.policy, noisy, sigma, batch["prompt_embeds"])
            with torch.no_grad():
                reference_velocity = self.predict(self.reference, noisy, sigma, batch["prompt_embeds"])
            errors[side] = F.mse_loss(velocity, target, reduction="none").mean(dim=(1, 2, 3, 4))
            reference_errors[side] = F.mse_loss(reference_velocity, target, reduction="none").mean(dim=(1, 2, 3, 4))
            distance = F.mse_loss(velocity, reference_velocity, reduction="none").mean(dim=(1, 2, 3, 4))
            anchor = anchor + 0.5 * distance
        scores = {side: reference_errors[side] - errors[side] for side in errors}
        margin = self.beta * (scores["chosen"] - scores["rejected"])
        preference = -F.logsigmoid(margin.clamp(-self.margin_clip, self.margin_clip))
        return (preference + self.zeroth_order_weight * anchor).mean()

    def predict(self, network: torch.nn.Module, noisy: Tensor, sigma: Tensor, prompt_embeds: Tensor) -> Tensor:
        """Predict the velocity of noisy latents."""
        with torch.autocast(noisy.device.type, torch.bfloat16, enabled=self.autocast):
            velocity = network(
                hidden_states=noisy.to(prompt_embeds.dtype),
                timestep=1000 * sigma,
                encoder_hidden_states=prompt_embeds,
                return_dict=False,
            )[0]
        return velocity.float()

    def step(self, batch: Batch, draws: tuple[Tensor, dict[str, Tensor]] | None = None) -> Tensor:
        """Take one optimizer step with given or new draws, and return the loss before it."""
        loss = self.loss(batch, *(draws or self.draw(batch)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trainable, self.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def parameters(self) -> list[Tensor]:
        """Return the parameters of policy and reference."""
        return [*self.policy.parameters(), *self.reference.parameters()]
