"""`spatialalign export-lora`: write a trained LoRA in the format that ComfyUI or the original Wan code reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from spatialalign_trl.cli.parsing import Parser, one_of
from spatialalign_trl.errors import printable

FORMATS = ("original", "comfyui", "diffusers")  # copied from models/lora_keys.py, which imports torch

DESCRIPTION = """\
Write a LoRA of a Wan model in another program's format.

  spatialalign export-lora runs/tiny -o tiny_comfyui.safetensors
  spatialalign export-lora runs/mine/pytorch_lora_weights.safetensors --format original -o mine.safetensors
  spatialalign export-lora from_elsewhere.safetensors --format diffusers -o mine/pytorch_lora_weights.safetensors

FOLDER may hold a LoRA under the names of diffusers, PEFT, kohya, ComfyUI, DiffSynth or OneTrainer.

  original    the parameter names of the Wan authors' code (cross_attn.k), without a prefix
  comfyui     the same names with the prefix diffusion_model., which diffusers reads as well
  diffusers   transformer.blocks.0.attn2.to_k: what training writes, and continues from with --lora_path"""


def build_parser() -> Parser:
    """Build the parser of `spatialalign export-lora`."""
    parser = Parser(prog="spatialalign export-lora", description=DESCRIPTION)
    parser.add_argument("source", metavar="FOLDER", help="a folder that training wrote, or a LoRA file in any format")
    parser.add_argument(
        "--format", type=one_of("format", FORMATS), default="comfyui", help=f"{', '.join(FORMATS)} (default: comfyui)"
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the .safetensors file to write")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    return parser


def main(words: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    parser = build_parser()
    args = parser.read(words)
    if Path(args.output).exists() and not args.force:
        parser.error(f"--output {args.output}: the file exists. Add --force to overwrite it")
    from spatialalign_trl.models.lora_keys import export_lora

    try:
        file = export_lora(args.source, args.output, args.format)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(printable(f"{file} ({args.format}, {file.stat().st_size:,} bytes)"))
    return 0
