"""`spatialalign evaluate`: compare models, LoRAs and folders of videos on the same prompts and seeds."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from spatialalign_trl.errors import printable
from spatialalign_trl.safe_text import printable_lines

PROG = "spatialalign evaluate"

EXAMPLES = f"""\
examples:
  {PROG} --model tiny --lora runs/tiny --prompts tiny_world_prompts
  {PROG} --model Wan-AI/Wan2.1-T2V-1.3B-Diffusers --lora ours=runs/wan theirs=owner/lora --prompts dsr_eval120.csv
  {PROG} --videos wan=outputs/wan ours=outputs/ours --prompts dsr_eval30.csv         {{prompt_id}}_F81_seed{{ss}}.mp4
  {PROG} --videos runs/tiny/samples --tracker color_segmentation                   samples record their prompts
  accelerate launch recipes/evaluate.py --model ...                                          on all GPUs

The same command again continues an interrupted evaluation. With another --lora added, only the missing videos are
sampled. --config FILE.yaml sets options, which flags override.
exit code: 0 = done, 1 = done, but some inputs could not be used and are listed, 2 = the command line is wrong,
130 = Ctrl-C.
"""


def main(words: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    from spatialalign_trl.arguments.evaluation import EvaluationArguments, run_and_write
    from spatialalign_trl.arguments.launch import quiet_libraries
    from spatialalign_trl.arguments.parsing import parse_recipe
    from spatialalign_trl.evaluation.video_folder import UnreadableVideosError

    if not words or {"--help", "-h"} & set(words):
        print(EXAMPLES)
    try:
        (args,) = parse_recipe((EvaluationArguments,), None, words or ["--help"], prog=PROG)
        quiet_libraries()
        evaluation = args.build()
    except (ValueError, TypeError, ImportError, OSError) as error:
        message = f"{PROG}: error: {error}\nRun '{PROG} --help' to list the options."
        print(printable_lines(message), file=sys.stderr)
        return 2
    try:
        results = run_and_write(evaluation, args.notes())
    except KeyboardInterrupt:
        message = (
            f"interrupted. Finished videos are kept in {args.output_dir}. Run the same command again to continue."
        )
        print(printable(message), file=sys.stderr)
        return 130
    except UnreadableVideosError as error:
        print(printable_lines(f"{PROG}: error: {error}"), file=sys.stderr)
        return 1
    return 1 if results["problems"] else 0
