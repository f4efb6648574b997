"""Two rounds in bf16: every step of both computes in it, and the LoRA stays in fp32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_loop import loop
from tiny_pipelines import saved_wan

from spatialalign_trl.files import read_json
from spatialalign_trl.models.lora import LORA_FILE


@pytest.mark.slow
@pytest.mark.parametrize("continue_adapter", [True, False])
def test_both_rounds_compute_in_bf16_whatever_was_made_before(tmp_path: Path, continue_adapter: bool) -> None:
    settings = {"bf16": True, "num_rounds": 2, "gradient_checkpointing": True, "continue_adapter": continue_adapter}
    run = loop(saved_wan(tmp_path / "model"), tmp_path / "run", **settings)
    computed: list[torch.dtype | None] = []

    def record(module: torch.nn.Module, inputs: tuple) -> None:
        if torch.is_grad_enabled():
            computed.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    run.model.base_transformer.register_forward_pre_hook(record)
    results = run.train()
    assert len(results["rounds"]) == 2 and set(computed) == {torch.bfloat16}
    assert len(computed) >= 2 * run.args.max_steps
    loras = [load_file(tmp_path / "run" / "rounds" / number / "policy" / LORA_FILE) for number in ("01", "02")]
    for weights in loras:
        assert all(value.dtype == torch.float32 and value.isfinite().all() for value in weights.values())
    assert any((loras[0][name] != loras[1][name]).any() for name in loras[0])
    assert read_json(tmp_path / "run" / "run.json")["bf16"] is True
