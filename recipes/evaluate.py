"""Evaluate models, LoRAs and folders of videos on the same prompts and seeds, on all available GPUs.

    python recipes/evaluate.py                                                       # the tiny model and its LoRA
    accelerate launch --num_processes 8 recipes/evaluate.py --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers \\
        --lora ours=runs/wan --prompts dsr_eval120.csv --seeds 5 --output_dir runs/eval120

Without `--config` it runs `recipes/configs/evaluate.yaml`: the embedded model, and the LoRA that
`recipes/spatialalign.py` trains. Flags override the YAML. The processes share the prompts, and running the same line
again continues it. It writes `results.json`, `table.md`, `table.tex`, `samples.parquet` and `report.html`; the formats
are described in `spatialalign_trl/report/evaluation_files.py`. `spatialalign evaluate` does the same in one process.
"""

from __future__ import annotations

from pathlib import Path

from spatialalign_trl.arguments.evaluation import EvaluationArguments, run_evaluation
from spatialalign_trl.arguments.launch import launched
from spatialalign_trl.arguments.parsing import parse_recipe

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "evaluate.yaml"


def main(args: EvaluationArguments) -> dict[str, object]:
    return run_evaluation(args)


if __name__ == "__main__":
    with launched("interrupted. What is finished is kept; the same command continues from there."):
        main(*parse_recipe((EvaluationArguments,), DEFAULT_CONFIG))
