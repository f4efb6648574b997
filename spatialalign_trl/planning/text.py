"""Show a forecast as a table of its stages and a few sentences."""

from __future__ import annotations

from spatialalign_trl.planning.forecast import Forecast, Stage


def as_text(plan: Forecast) -> str:
    """Return a forecast as text, for a terminal."""
    frames, height, width = plan.size
    lines = [
        f"{plan.model} ({plan.family}): {plan.parameters:,} weights, LoRA {plan.lora_parameters:,}; "
        f"{frames} frames of {height}x{width}",
        f"legal sizes: {plan.legal_sizes}",
        "settings: " + ", ".join(f"{name}={value}" for name, value in plan.settings.items()),
        "",
        f"{'stage':<32}{'weights':>9}{'peak GiB':>10}{'PFLOP':>11} per{'':<7}{'count':>9}{'hours':>10}",
        *(_row(stage) for stage in plan.stages),
        "",
        *_process(plan),
        *_hours(plan),
        *_disk(plan),
        *_verdict(plan),
    ]
    notes = dict.fromkeys(f"{stage.name}: {stage.note}" for stage in plan.stages if stage.note)
    return "\n".join([*lines, *notes])


def memory_line(plan: Forecast) -> str:
    """Return the peaks of the stages in one sentence, as the YAML files of the recipes quote them."""
    sampling = [stage for stage in plan.stages if stage.name.startswith(("rollout", "evaluation"))]
    largest = max(sampling, key=lambda stage: stage.memory)
    steps = {stage.count > 0: stage for stage in plan.stages if stage.name.startswith("training step")}
    other = "without" if "(checkpointing)" in steps[True].name else "with"
    return (
        f"training step {steps[True].memory:.1f} GiB ({steps[False].memory:.1f} {other} checkpointing), "
        f"sampling {largest.memory:.1f} GiB ({largest.name.partition(': ')[2]})"
    )


def _row(stage: Stage) -> str:
    hours = "" if stage.hours is None or not stage.count else _number(stage.hours)
    count = f"{stage.count:,.0f}" if stage.count else "-"
    pflop = "" if stage.pflop == 0 else f"{stage.pflop:.4g}"
    large = "  too large" if stage.fits is False else ""
    return (
        f"{stage.name:<32}{stage.weights:>9.2f}{stage.memory:>10.2f}{pflop:>11} per {stage.unit:<7}"
        f"{count:>9}{hours:>10}{large}"
    )


def _process(plan: Forecast) -> list[str]:
    if not plan.process:
        return []
    parts = ", ".join(f"{name} {size:.2f}" for name, size in plan.process.items())
    return [f"memory of the process on the CPU: {sum(plan.process.values()):.2f} GiB ({parts})"]


def _hours(plan: Forecast) -> list[str]:
    if plan.hours is None:
        return ["hours: not known without a rate; name the card (--gpu H100), or pass --tflops"]
    cost = "" if plan.cost is None else f", {plan.cost:,.0f} at the price given"
    return [
        f"{_number(plan.hours)} hours without scoring, on {plan.gpus} at {plan.tflops:.4g} TFLOP/s each: "
        f"{_number(plan.gpu_hours or 0)} device-hours{cost}"
    ]


def _disk(plan: Forecast) -> list[str]:
    parts = ", ".join(f"{name} {size:,.1f}" for name, size in plan.disk.items())
    return [
        f"disk: {sum(plan.disk.values()):,.1f} GiB ({parts}); {plan.pairs:,.0f} pairs in the largest round, with a "
        f"win rate of {plan.win_rate:g}, each trained on {plan.visits:.1f} times",
        f"memory of the main process for the pairs: {plan.ram:,.1f} GiB",
    ]


def _verdict(plan: Forecast) -> list[str]:
    if plan.usable is None:
        return []
    card = f"{plan.card}: {plan.usable:.1f} GiB are usable"
    if plan.fits:
        return [f"{card}. It fits."]
    if plan.remedy is None:
        return [f"{card}. It does not fit."]
    found = f"It fits with: {plan.remedy}" if plan.remedy else "It does not fit, and no remedy helps enough."
    return [f"{card}. It does not fit as it is. {found}", *(f"  tried {line}" for line in plan.tried)]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
