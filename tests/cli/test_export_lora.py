"""`spatialalign export-lora` writes every format, reports it, and names mistakes without touching a file."""

from __future__ import annotations

import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatialalign_trl.cli import export_lora as command
from spatialalign_trl.cli import main
from spatialalign_trl.models.lora import LORA_FILE
from spatialalign_trl.models.lora_keys import FORMATS


@pytest.fixture
def folder(tmp_path):
    name = "transformer.blocks.0.attn2.to_k"
    save_file(
        {f"{name}.lora_A.weight": torch.ones(2, 3), f"{name}.lora_B.weight": torch.ones(3, 2)}, tmp_path / LORA_FILE
    )
    return tmp_path


@pytest.mark.parametrize("lora_format", FORMATS)
def test_every_format_is_written_and_reported(folder, capsys, lora_format):
    output = folder / "new" / "out.safetensors"
    assert main(["export-lora", str(folder), "--format", lora_format, "-o", str(output)]) == 0
    prefix = {"original": "blocks.0.cross_attn.k", "comfyui": "diffusion_model.blocks.0.cross_attn.k"}
    expected = prefix.get(lora_format, "transformer.blocks.0.attn2.to_k")
    assert set(load_file(output)) == {f"{expected}.lora_A.weight", f"{expected}.lora_B.weight"}
    assert f"{output} ({lora_format}" in capsys.readouterr().out


def test_the_command_and_the_library_know_the_same_formats():
    assert command.FORMATS == FORMATS


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{folder}"], "-o"),
        (["{folder}", "-o", "{folder}/x.safetensors", "--format", "comfyu"], "Did you mean 'comfyui'"),
        (["{folder}/nothing", "-o", "{folder}/x.safetensors"], "there is no LoRA file or folder"),
        (["{folder}", "-o", "{folder}/x.bin"], "must end in .safetensors"),
        (["{folder}", "-o", "{folder}/pytorch_lora_weights.safetensors"], "the file exists. Add --force"),
    ],
)
def test_errors_exit_with_2_and_name_the_reason(folder, capsys, words, message):
    before = (folder / LORA_FILE).read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(["export-lora", *(word.format(folder=folder) for word in words)])
    assert stop.value.code == 2 and message in capsys.readouterr().err
    assert (folder / LORA_FILE).read_bytes() == before


def test_the_remedy_for_dora_works(folder, capsys):
    """What the command says to do instead is a command that works."""
    weights = load_file(folder / LORA_FILE)
    save_file({**weights, "transformer.blocks.0.attn2.to_k.lora_magnitude_vector": torch.ones(3)}, folder / LORA_FILE)
    words = ["export-lora", str(folder), "-o", str(folder / "out.safetensors")]
    with pytest.raises(SystemExit):
        main(words)
    remedy = re.search(r"use (--format \w+)", capsys.readouterr().err)[1]
    assert main([*words, *remedy.split()]) == 0
    assert (folder / "out.safetensors").read_bytes() == (folder / LORA_FILE).read_bytes()


def test_the_commands_are_listed(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert re.search(r"export-lora +write a trained LoRA", capsys.readouterr().out)
