"""Find settings with which a run fits a card: the product's own remedies, in order, each traced."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from spatialalign_trl.errors import near_miss
from spatialalign_trl.models.quantization import QUANTIZATIONS
from spatialalign_trl.planning.cards import Card
from spatialalign_trl.planning.forecast import Forecast, RunSettings, forecast
from spatialalign_trl.planning.stages import StageTracer
from spatialalign_trl.planning.workload import Workload

REMEDIES = (
    "offload_encoders",
    "vae_tiling",
    "separate_forward",
    "gradient_checkpointing",
    "num_frames",
    "quantization",
)
"""The remedies, in the order in which they are tried: from those that change least to those that change most."""

_HELPS = {
    "offload_encoders": ("rollout: denoising", "rollout: decode", "evaluation: denoising", "evaluation: decode"),
    "vae_tiling": ("rollout: decode", "evaluation: decode"),
    "separate_forward": ("training step",),
    "gradient_checkpointing": ("training step",),
}
_FRAME_SHARES = (0.75, 0.5, 0.25)


@dataclasses.dataclass(frozen=True)
class Attempt:
    """A run with some remedies applied: its settings, and the flags that set them."""

    tracer: StageTracer
    run: RunSettings
    workload: Workload
    flags: dict[str, Any]

    @property
    def line(self) -> str:
        """The flags of a command line."""
        return " ".join(f"--{name} {str(value).lower()}" for name, value in self.flags.items())


def check_remedies(names: Sequence[str], tracer: StageTracer) -> None:
    """
    Check remedies that a user asks for.

    Args:
        names (sequence of `str`):
            Some of `REMEDIES`.
        tracer ([`StageTracer`]):
            The model.

    Raises:
        ValueError: if one is unknown, or the model does not have it.
    """
    for name in names:
        if name not in REMEDIES:
            raise ValueError(f"remedies={name!r}: unknown. {near_miss(name, REMEDIES)}")
        lacks = _lacks(name, tracer)
        if lacks:
            raise ValueError(f"remedies={name!r}: {lacks}. Leave it out.")


def find_remedy(
    plan: Forecast,
    start: Attempt,
    card: Card,
    tflops: float | None = None,
    price: float | None = None,
    remedies: Sequence[str] = REMEDIES,
) -> Forecast:
    """
    Add to a forecast that does not fit its card the flags with which it does.

    Remedies are added up in order; one that does not help a stage that is too large is left out.

    Args:
        plan ([`Forecast`]):
            The forecast of the run as it is.
        start ([`Attempt`]):
            The run as it is, without flags.
        card, tflops, price:
            See [`forecast.forecast`].
        remedies (sequence of `str`, *optional*):
            The remedies that may be used.

    Returns:
        [`Forecast`]: with `remedy` (empty if nothing helps) and `tried`; unchanged if it fits.
    """
    if plan.fits is not False:
        return plan
    tried: list[str] = []
    attempt, latest = start, plan
    for name in [remedy for remedy in REMEDIES if remedy in remedies]:
        if latest.fits:
            break
        lacks = _lacks(name, attempt.tracer)
        if lacks:
            tried.append(f"{name}: {lacks}")
            continue
        for changed in _applied(name, attempt, latest):
            result = forecast(changed.tracer, changed.run, changed.workload, card, tflops, price)
            gain = _excess(latest) - _excess(result)
            tried.append(f"{changed.line}: {_verdict(result)}")
            if name == "num_frames" and not result.fits:
                continue  # a shorter video is worth it only if it fits
            if gain > 0.05 or result.fits:
                attempt, latest = changed, result
            if result.fits:
                break
    return dataclasses.replace(plan, remedy=attempt.line if latest.fits else "", tried=tried)


def _applied(name: str, attempt: Attempt, plan: Forecast) -> Iterator[Attempt]:
    """Yield the attempt with a remedy, in all its strengths; nothing if it is on, or helps no large stage."""
    large = [stage.name for stage in plan.stages if stage.fits is False]
    if name in _HELPS and not any(stage.startswith(_HELPS[name]) for stage in large):
        return
    run, tracer = attempt.run, attempt.tracer

    def with_flag(value: Any, **changes: Any) -> Attempt:
        return dataclasses.replace(attempt, flags={**attempt.flags, name: value}, **changes)

    if name in ("offload_encoders", "vae_tiling"):
        if not getattr(run, name):
            yield with_flag(True, run=dataclasses.replace(run, **{name: True}))
    elif name in ("separate_forward", "gradient_checkpointing"):
        if not getattr(run.trainer, name):
            trainer = copy.copy(run.trainer)
            setattr(trainer, name, True)
            yield with_flag(True, run=dataclasses.replace(run, trainer=trainer))
    elif name == "num_frames":
        stride = tracer.size_multiples[0]
        for share in _FRAME_SHARES:
            frames = int((tracer.setup.num_frames - 1) * share) // stride * stride + 1
            if 1 < frames < tracer.setup.num_frames:
                setup = dataclasses.replace(tracer.setup, num_frames=frames)
                yield with_flag(frames, tracer=StageTracer(tracer.architecture, setup))
    elif tracer.setup.quantization is None:
        for quantization in QUANTIZATIONS:
            setup = dataclasses.replace(tracer.setup, quantization=quantization)
            yield with_flag(quantization, tracer=StageTracer(tracer.architecture, setup))


def _lacks(name: str, tracer: StageTracer) -> str:
    """Say why a model does not have a remedy; empty if it has."""
    parts = tracer.architecture.components
    if name == "vae_tiling" and not tracer.can_tile:
        return f"{parts['vae'].class_name.partition(':')[2]} has no tiles"
    if name == "gradient_checkpointing" and not tracer.can_checkpoint:
        return f"{parts['transformer'].class_name.partition(':')[2]} has no gradient checkpointing"
    return ""


def _excess(plan: Forecast) -> float:
    """Return by how many GiB the stages that do not fit are too large, together."""
    assert plan.usable is not None
    return sum(stage.memory - plan.usable for stage in plan.stages if stage.fits is False)


def _verdict(plan: Forecast) -> str:
    large = [f"{stage.name} {stage.memory:.1f} GiB" for stage in plan.stages if stage.fits is False]
    return f"too large: {', '.join(large)}" if large else "fits"
