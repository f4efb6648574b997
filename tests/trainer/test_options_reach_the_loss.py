"""Every option of the loss and of the draws changes what a trainer computes exactly as the pure functions say."""

from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from tiny_pairs import latent_pairs, moved, spatialalign_config, spatialalign_trainer, wan_model, with_noise_seeds

from spatialalign_trl.models import WanVideoModel
from spatialalign_trl.trainer import DiffusionDPOConfig, DiffusionDPOTrainer, SpatialAlignTrainer
from spatialalign_trl.trainer.draws import DrawKey, Draws
from spatialalign_trl.trainer.flow_matching import pair_generator, sample_sigmas
from spatialalign_trl.trainer.losses import Pair, sft_loss, zeroth_order_dpo_loss
from spatialalign_trl.trainer.publishing import METRIC_NAMES

SEED = 7  # of `spatialalign_config`
ONE_STEP: dict[str, Any] = {"max_steps": 1, "learning_rate": 1e-30, "optim": "sgd", "per_device_train_batch_size": 4}
ONE_STEP |= {"per_device_eval_batch_size": 4, "max_grad_norm": 0.0}


def recorded(trainer: DiffusionDPOTrainer) -> list[tuple[dict[str, Any], Draws]]:
    """Record the batches of a trainer with their draws."""
    batches, draw = [], trainer._draw

    def record(inputs: dict[str, Any]) -> Draws:
        draws = draw(inputs)
        batches.append((inputs, draws))
        return draws

    trainer._draw = record
    return batches


def predicted(trainer: DiffusionDPOTrainer, inputs: dict[str, Any], draws: Draws) -> dict[str, Pair]:
    """Noise a batch as the formula says, and predict with the policy, the reference and the truth."""
    model, sigma = trainer.video_model, draws.sigma.view(-1, 1, 1, 1, 1)
    clean = Pair(inputs["chosen"], inputs["rejected"])
    noisy = torch.cat([(1 - sigma) * x + sigma * eps for x, eps in zip(clean, draws.noise, strict=True)])
    twice = {name: torch.cat([value, value]) for name, value in inputs["conditioning"].items()}
    policy = Pair(*model.predict(noisy, draws.sigma.repeat(2), twice).chunk(2))
    with torch.no_grad(), model.reference():
        reference = Pair(*model.predict(noisy, draws.sigma.repeat(2), twice).chunk(2))
    target = Pair(*(eps - x for x, eps in zip(clean, draws.noise, strict=True)))
    return {"policy": policy, "reference": reference, "target": target}


def gradient_norm(trainer: DiffusionDPOTrainer, loss: torch.Tensor) -> float:
    parameters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    return float(torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, parameters)]).norm())


def make(output_dir: Path, kind: type[DiffusionDPOTrainer], **options: Any) -> DiffusionDPOTrainer:
    data = {"train_dataset": latent_pairs(4), "eval_dataset": latent_pairs(4, seed=1)}
    if kind is SpatialAlignTrainer:
        return moved(spatialalign_trainer(output_dir, **data, **ONE_STEP, **options))
    defaults = spatialalign_config(output_dir, zeroth_order_weight=0.0, **ONE_STEP, **options).to_dict()
    names = DiffusionDPOConfig.__dataclass_fields__.keys() - {"gradient_checkpointing"}
    known = {name: defaults[name] for name in (*options, *ONE_STEP, "output_dir", "use_cpu", "seed") if name in names}
    args = DiffusionDPOConfig(gradient_checkpointing=False, logging_steps=1, save_strategy="no", **known)
    return moved(DiffusionDPOTrainer(wan_model(), args=args, **data))


LOSS_OPTIONS: dict[str, dict[str, Any]] = {
    "beta": {"beta": 40.0},
    "margin_clip": {"margin_clip": 0.001},
    "no margin_clip": {"margin_clip": None, "beta": 4000.0},
    "hinge": {"loss_type": "hinge", "beta": 40.0},
    "ipo": {"loss_type": "ipo", "margin_clip": None, "beta": 3.0},
    "sft_weight": {"sft_weight": 0.3},
    "winner_safe_mu": {"winner_safe_mu": 0.9, "shared_noise": True, "beta": 40.0},
    "all": {"loss_type": "hinge", "beta": 40.0, "margin_clip": 0.5, "sft_weight": 0.3, "winner_safe_mu": 0.9},
}


def assert_step_is_pure(
    output_dir: Path, kind: type[DiffusionDPOTrainer], options: dict[str, Any], without: dict[str, Any]
) -> None:
    """
    Compare one step and one evaluation with the pure function, and check that the options matter here: the pure
    function without them gives another loss, another metric or another gradient.
    """
    pure = {"zeroth_order_weight": 0.5 if kind is SpatialAlignTrainer else 0} | options
    pure.pop("shared_noise", None)
    trainer = make(output_dir, kind, **options)
    batches = recorded(trainer)
    trainer.train()
    logs = [trainer.state.log_history[0], trainer.evaluate()]
    assert len(batches) == 2
    for (inputs, draws), log, prefix in zip(batches, logs, ("", "eval_"), strict=True):
        pairs = predicted(trainer, inputs, draws)
        loss, metrics = zeroth_order_dpo_loss(**pairs, **pure)
        if kind is DiffusionDPOTrainer:
            del metrics["loss_zeroth_order"]
        assert {name for name in METRIC_NAMES.values() if prefix + name in log} == {METRIC_NAMES[n] for n in metrics}
        found = {name: log[prefix + METRIC_NAMES[name]] for name in metrics}
        assert log[prefix + "loss"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-7)
        assert found == pytest.approx({name: value.item() for name, value in metrics.items()}, rel=1e-5, abs=1e-6)
        if not prefix:
            norm = gradient_norm(trainer, loss)
            assert log["grad_norm"] == pytest.approx(norm, rel=1e-4)
            plain, _ = zeroth_order_dpo_loss(**predicted(trainer, inputs, draws), **without)
            changes = abs(plain.item() - loss.item()), abs(gradient_norm(trainer, plain) - norm)
            assert max(changes) > 1e-3 * norm


@pytest.mark.parametrize("name", LOSS_OPTIONS)
@pytest.mark.parametrize("kind", [SpatialAlignTrainer, DiffusionDPOTrainer])
def test_options_of_the_loss_change_it_as_the_pure_function_says(
    tmp_path: Path, kind: type[DiffusionDPOTrainer], name: str
) -> None:
    options = LOSS_OPTIONS[name]
    without = {"beta": options["beta"]} if len(options) > 1 and "beta" in options else {}
    without["zeroth_order_weight"] = 0.5 if kind is SpatialAlignTrainer else 0
    assert_step_is_pure(tmp_path, kind, options, without)


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_the_zeroth_order_weight_reaches_the_loss(tmp_path: Path, weight: float) -> None:
    assert_step_is_pure(tmp_path, SpatialAlignTrainer, {"zeroth_order_weight": weight}, {})


def test_sft_is_the_error_of_the_chosen_and_its_evaluation_reports_the_pair(tmp_path: Path) -> None:
    trainer = make(tmp_path, DiffusionDPOTrainer, loss_type="sft", beta=40.0)
    batches = recorded(trainer)
    trainer.train()
    log, evaluated = trainer.state.log_history[0], trainer.evaluate()
    pairs = [predicted(trainer, *batch) for batch in batches]
    loss, _ = sft_loss(pairs[0]["policy"].chosen, pairs[0]["target"].chosen)
    assert log["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert log["grad_norm"] == pytest.approx(gradient_norm(trainer, loss), rel=1e-4)
    _, metrics = zeroth_order_dpo_loss(**pairs[1], beta=40.0)
    del metrics["loss_zeroth_order"]
    found = {name: evaluated[f"eval_{METRIC_NAMES[name]}"] for name in metrics}
    assert found == pytest.approx({name: value.item() for name, value in metrics.items()}, rel=1e-5, abs=1e-6)
    assert evaluated["eval_loss"] == pytest.approx(evaluated["eval_mse/chosen"], rel=1e-5)


# The draws


def drawn_sigmas(trainer: SpatialAlignTrainer, steps: int = 30) -> torch.Tensor:
    """Draw the noise levels of all eight pairs in some training steps: `(steps, 8)`."""
    trainer.model.train()
    batch = next(iter(trainer.get_train_dataloader()))
    sigmas = []
    for step in range(steps):
        trainer.state.global_step = step
        sigmas.append(trainer._draw(batch).sigma)
    return torch.stack(sigmas)


DRAW_OPTIONS: list[dict[str, Any]] = [
    {},
    {"min_sigma": 0.6},
    {"max_sigma": 0.3},
    {"min_sigma": 0.4, "max_sigma": 0.5, "num_train_timesteps": None},
    {"flow_shift": 1.0, "num_train_timesteps": 10},
    {"timestep_sampling": "logit_normal", "min_sigma": 0.2},
    {"timestep_sampling": "logit_normal_shifted", "flow_shift": 2.0, "max_sigma": 0.9},
]


@pytest.mark.parametrize("options", DRAW_OPTIONS, ids=lambda options: "-".join(options) or "defaults")
def test_the_drawn_noise_levels_are_those_of_the_options(tmp_path: Path, options: dict[str, Any]) -> None:
    trainer = spatialalign_trainer(tmp_path, per_device_train_batch_size=8, **options)
    sigmas = drawn_sigmas(trainer)
    names = {"flow_shift": "shift", "timestep_sampling": "sampling"}
    pure = {names.get(name, name): value for name, value in options.items()}
    pure.setdefault("shift", wan_model().default_settings().flow_shift)
    for step, row in enumerate(sigmas):
        generators = [pair_generator(SEED, "train", step, position) for position in range(8)]
        assert torch.equal(row, torch.cat([sample_sigmas(1, generator=g, **pure) for g in generators]))
    low, high = options.get("min_sigma", 0.0), options.get("max_sigma", 1.0)
    assert low - 1e-6 <= sigmas.min() and sigmas.max() <= high + 1e-6
    assert sigmas.max() - sigmas.min() > 0.5 * (high - low)


@pytest.mark.parametrize(("expert", "low", "high"), [("high_noise", 0.875, 1.0), ("low_noise", 0.0, 0.875)])
@pytest.mark.parametrize("options", [{}, {"min_sigma": 0.5, "max_sigma": 0.95}], ids=["all", "bounded"])
def test_an_expert_is_trained_and_evaluated_at_its_own_noise_levels(
    tmp_path: Path, expert: str, low: float, high: float, options: dict[str, Any]
) -> None:
    low, high = max(low, options.get("min_sigma", 0.0)), min(high, options.get("max_sigma", 1.0))
    model = WanVideoModel(tiny_pipelines.two_expert_pipeline(), expert=expert)
    data = {"train_dataset": with_noise_seeds(latent_pairs()), "eval_dataset": latent_pairs(8, seed=1)}
    trainer = spatialalign_trainer(
        tmp_path, model=model, per_device_train_batch_size=8, per_device_eval_batch_size=8, **data, **options
    )
    streams = {"train": drawn_sigmas(trainer).flatten()}
    trainer.model.eval()
    trainer._eval_batches = 0
    streams["eval"] = trainer._draw(next(iter(trainer.get_eval_dataloader()))).sigma
    fixed = [trainer.noise.of_key(DrawKey("fixed", row, k), (1,), None)[0] for row in range(8) for k in range(4)]
    streams["fixed"] = torch.cat(fixed)
    for name, sigmas in streams.items():
        assert low - 1e-6 <= sigmas.min() and sigmas.max() <= high + 1e-6, name
        assert sigmas.max() - sigmas.min() > 0.3 * (high - low), name
