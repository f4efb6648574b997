"""`spatialalign export-lora`: a trained LoRA under the names that ComfyUI and the original Wan code read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spatialalign_trl.cli.parsing import Parser, one_of

FORMATS = ("original", "comfyui", "diffusers")  # as models/lora_keys.py has them, which imports torch

DESCRIPTION = """\
Write a LoRA of a Wan model in another program's format.

  spatialalign export-lora runs/tiny -o tiny_comfyui.safetensors
  spatialalign export-lora runs/mine/pytorch_lora_weights.safetensors --format original -o mine.safetensors
  spatialalign export-lora from_elsewhere.safetensors --format diffusers -o mine/pytorch_lora_weights.safetensors

  original    the names of the Wan authors' code (cross_attn.k), without a prefix
  comfyui     the same after diffusion_model., which diffusers reads as well
  diffusers   transformer.blocks.0.attn2.to_k: what training writes and continues from (--lora_path)"""


def build_parser() -> Parser:
    """The command's options."""
    parser = Parser(prog="spatialalign export-lora", description=DESCRIPTION)
    parser.add_argument("source", metavar="FOLDER", help="a folder that training wrote, or a LoRA file in any format")
    parser.add_argument(
        "--format", type=one_of("format", FORMATS), default="comfyui", help=f"{', '.join(FORMATS)} (default: comfyui)"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--force", action="store_true", help="replace the file if it is there")
    return parser


def main(words: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    parser = build_parser()
    args = parser.read(words)
    if Path(args.output).exists() and not args.force:
        parser.error(f"{args.output} is there already; --force replaces it")
    from spatialalign_trl.models.lora_keys import export_lora

    try:
        file = export_lora(args.source, args.output, args.format)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(f"{file} ({args.format}, {file.stat().st_size:,} bytes)")
    return 0
