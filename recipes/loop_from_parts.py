"""The algorithm, top to bottom: sample, score, pair, train and evaluate, with the library's parts and nothing hidden.

    python recipes/loop_from_parts.py                                            # a laptop, a few minutes
    python recipes/loop_from_parts.py --train_prompts 150 --steps 240 --output_dir runs/longer

Read this file to see what SpatialAlign does, or copy it to change what it does. `recipes/spatialalign.py` is the
launcher of the same loop, with several rounds and processes, resuming, bf16, checkpoints, cards and pages.

Simplified: one round, one process, fp32, a constant learning rate, and nothing resumes except the sampling.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
from tqdm import tqdm

from spatialalign_trl import RewardRunner, SampleStore, load_prompts, load_video_model, make_pairs, roll_out
from spatialalign_trl.arguments.parsing import parse_recipe
from spatialalign_trl.evaluation import summarize
from spatialalign_trl.files import write_json
from spatialalign_trl.models.lora import lora_fingerprint
from spatialalign_trl.models.ranges import COUNT, FINITE, SEED, Range
from spatialalign_trl.rewards import score_samples
from spatialalign_trl.trainer.flow_matching import sample_sigmas
from spatialalign_trl.trainer.lora import attach_lora, default_lora_config
from spatialalign_trl.trainer.losses import Pair, zeroth_order_dpo_loss

PROMPTS = Path(__file__).parent.parent / "datasets" / "tiny_world_prompts"


@dataclass
class LoopArguments:
    output_dir: str = field(default="runs/loop_from_parts", metadata={"help": "Folder of samples, LoRA and results."})
    train_prompts: Annotated[int, COUNT] = field(default=60, metadata={"help": "Prompts to sample and train on."})
    eval_prompts: Annotated[int, COUNT] = field(default=30, metadata={"help": "Held-out prompts, before and after."})
    num_generations: Annotated[int, COUNT] = field(default=4, metadata={"help": "Videos per training prompt."})
    num_inference_steps: Annotated[int, COUNT] = field(default=10, metadata={"help": "Steps of the sampler."})
    score_threshold: Annotated[float, FINITE] = field(default=0.8, metadata={"help": "Smallest score of a winner."})
    steps: Annotated[int, COUNT] = field(default=120, metadata={"help": "Optimizer steps."})
    batch_size: Annotated[int, COUNT] = field(default=16, metadata={"help": "Pairs per step."})
    learning_rate: Annotated[float, Range(above=0)] = field(default=2e-3, metadata={"help": "Learning rate of AdamW."})
    beta: Annotated[float, Range(above=0)] = field(default=1.0, metadata={"help": "Factor of the score difference."})
    zeroth_order_weight: Annotated[float, Range(at_least=0)] = field(default=0.6, metadata={"help": "Weight of L_zo."})
    seed: Annotated[int, SEED] = field(default=0, metadata={"help": "Seed of the LoRA, the pairs and the noise."})


def main(args: LoopArguments) -> dict[str, float]:
    torch.set_num_threads(1)  # the embedded model is too small for more
    output_dir = Path(args.output_dir)
    model = load_video_model("tiny")
    settings = model.default_settings().updated({"num_inference_steps": args.num_inference_steps})
    store, runner = SampleStore(output_dir / "samples"), RewardRunner("dsr_score")
    train_rows = load_prompts(PROMPTS, "train").select(range(args.train_prompts))
    eval_rows = load_prompts(PROMPTS, "test").select(range(args.eval_prompts))

    def sample_and_score(rows, seeds, revision):
        samples = roll_out(model, rows, seeds, settings, store, policy_revision=revision, crf=0, desc=revision)
        return score_samples(samples, store, runner)

    # 1. Evaluate the base model on held-out prompts, with fixed seeds.
    eval_seeds = [1000, 1001]
    before = summarize(sample_and_score(eval_rows, eval_seeds, "base"))

    # 2. Sample the policy's own videos, and grade them: does the animal start and end where the prompt says?
    samples = sample_and_score(train_rows, range(args.num_generations), "base")

    # 3. Pair winners with losers of the same prompt. Latents were stored with the videos, so nothing is re-encoded.
    pairs = make_pairs(samples, "threshold", args.score_threshold, pairs_per_prompt=8, seed=args.seed).pairs
    if not pairs:
        raise ValueError(f"no prompt has a winner and a loser at score_threshold={args.score_threshold}: lower it")
    print(f"{len(pairs)} pairs from {len(samples)} videos")
    prompts = {pair.chosen.row["prompt"] for pair in pairs}
    embeddings = {prompt: model.encode_prompts([prompt]) for prompt in prompts}

    # 4. Train a LoRA. The reference is the same network with the LoRA switched off, so one network is in memory.
    attach_lora(model, default_lora_config(model, targets="all-linear"), seed=args.seed)
    trainable = [parameter for parameter in model.transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=args.learning_rate)
    generator = torch.Generator().manual_seed(args.seed)
    for _ in (progress := tqdm(range(args.steps), desc="training", unit="step")):
        batch = [pairs[i] for i in torch.randint(len(pairs), (args.batch_size,), generator=generator)]
        clean = Pair(
            torch.stack([store.latents(pair.chosen.sample_id) for pair in batch]).float(),
            torch.stack([store.latents(pair.rejected.sample_id) for pair in batch]).float(),
        )
        embedded = [embeddings[pair.chosen.row["prompt"]] for pair in batch]
        conditioning = {name: torch.cat([values[name] for values in embedded]) for name in embedded[0]}
        # One noise level and one noise for both videos of a pair, at high noise, where positions are decided.
        sigma = sample_sigmas(len(batch), shift=model.flow_shift, generator=generator, min_sigma=0.5)
        noise = torch.randn(clean.chosen.shape, generator=generator)
        noisy = Pair(*(model.add_noise(latents, noise, sigma) for latents in clean))
        target = Pair(*(model.target(latents, noise, sigma) for latents in clean))
        with torch.no_grad(), model.reference():
            reference = Pair(*(model.predict(latents, sigma, conditioning) for latents in noisy))
        policy = Pair(*(model.predict(latents, sigma, conditioning) for latents in noisy))
        loss, metrics = zeroth_order_dpo_loss(
            policy, reference, target, beta=args.beta, zeroth_order_weight=args.zeroth_order_weight
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        progress.set_postfix(loss=f"{loss.item():.3f}", margin=f"{metrics['margin'].item():.3f}")
    model.save_lora(output_dir)

    # 5. Evaluate the policy on the same prompts and seeds. The store tells policies apart by a hash of the weights.
    revision = lora_fingerprint(model.lora_state_dict())
    after = summarize(sample_and_score(eval_rows, eval_seeds, revision))
    results = {"base": before["S@0.7"], "aligned": after["S@0.7"], "loss": loss.item(), "pairs": len(pairs)}
    write_json(output_dir / "results.json", results)
    print(f"S@0.7 on {len(eval_rows)} held-out prompts: {results['base']:.3f} -> {results['aligned']:.3f}")
    return results


if __name__ == "__main__":
    main(*parse_recipe((LoopArguments,)))
