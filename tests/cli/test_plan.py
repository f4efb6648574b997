"""`spatialalign plan`: the embedded model from start to end, and one clear line for everything that it refuses."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from spatialalign_trl.cli import main
from spatialalign_trl.models.tiny import tiny_model_path

CONFIGS = Path(__file__).resolve().parents[2] / "recipes" / "configs"
TINY = str(CONFIGS / "tiny.yaml")
WAN = str(CONFIGS / "wan2.1_t2v_1.3b.yaml")


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a plan reached for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def refused(capsys, *words: str) -> str:
    """Run a command that must exit with code 2, and return its one line."""
    with pytest.raises(SystemExit) as exit_:
        main(["plan", *words])
    assert exit_.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if not line.startswith(("Run 'spatialalign plan", "usage:"))]
    assert len(lines) == 1, lines
    return lines[0]


def test_the_laptops_job(capsys, tmp_path):
    file = tmp_path / "plan.json"
    assert main(["plan", "--config", TINY, "--json", str(file)]) == 0
    text = capsys.readouterr().out
    plan = json.loads(file.read_text())
    assert plan["model"] == "tiny" and plan["size"] == [17, 32, 48]
    assert plan["settings"]["dtype"] == "float32" and plan["settings"]["gradient_checkpointing"] is False
    stages = {stage["name"]: stage for stage in plan["stages"]}
    assert stages["rollout: denoising"]["count"] == 150 * 4 * 2
    assert stages["evaluation: denoising"]["count"] == 60 * 4 * 2
    assert "memory of the process on the CPU" in text and sum(plan["process"].values()) > 0.1


def test_flags_of_the_recipe_override_the_yaml_and_a_folder_is_a_model(capsys):
    folder = str(tiny_model_path("tiny"))
    words = ["--num_frames", "9", "--num_generations", "7", "--model", folder]
    assert main(["plan", "--config", TINY, "--json", "-", "--gpu", "24GB", *words]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["size"][0] == 9 and plan["model"] == folder and plan["fits"] is True
    assert {stage["name"]: stage for stage in plan["stages"]}["rollout: decode"]["count"] == 150 * 7 * 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--config", WAN, "--gpu", "H1000"], "gpu='H1000': unknown card. Did you mean 'H100'?"),
        (["--config", WAN, "--gpu", "5000GB"], "gpu='5000GB': no GPU has such a size"),
        (["--config", WAN, "--num_frames", "80"], "num_frames=80: must be a multiple of 4 plus 1"),
        (["--config", WAN, "--height", "481"], "height=481: must be a multiple of 16"),
        (["--config", WAN, "--model_name_or_path", "Wan-AI/Wan3"], "path='Wan-AI/Wan3': its architecture"),
        (["--config", WAN, "--model", "/no/such/folder"], "no folder '/no/such/folder'"),
        (["--config", WAN, "--quantization", "bitsandbytes_3bit"], "quantization='bitsandbytes_3bit': unknown"),
        (["--config", WAN, "--remedies", "vae_tilling"], "unknown. Did you mean 'vae_tiling'?"),
        (["--config", WAN, "--model_init_kwargs", "{expert: high_noise}"], "has only one transformer"),
        (["--config", WAN, "--lora_target_modules", "attn9.to_k"], "no module 'attn9.to_k'"),
        (["--config", WAN, "--variant", "context"], "variant='context'"),
        (["--config", WAN, "--train_prompts", "someone/prompts"], "'someone/prompts': is not on this machine"),
        (["--config", WAN, "--gpus", "0"], "--gpus"),
        (["--config", WAN, "--tflops", "nan"], "nan is not a number above 0"),
        (["--config", WAN, "--win_rate", "2"], "2 is not in 0 to 1"),
        (["--config", WAN, "--prise", "2"], "--prise"),
        (["--config", str(CONFIGS / "no.yaml")], "no.yaml"),
        ([], "--config"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_one_clear_line(capsys, words, expected):
    assert expected in refused(capsys, *words)


def test_a_folder_without_configurations(capsys, tmp_path):
    (tmp_path / "model_index.json").write_text(
        json.dumps({"_class_name": "WanPipeline", "transformer": ["diffusers", "WanTransformer3DModel"]})
    )
    assert "has no transformer/config.json" in refused(capsys, "--config", WAN, "--model", str(tmp_path))
