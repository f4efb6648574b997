"""Run the main job with a Hub: check what the command line pushes, and run the card's quick start unchanged."""

from __future__ import annotations

import ast
import html
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import ModelCard
from loopback_hub import LoopbackHub

from spatialalign_trl.arguments.model import ModelArguments
from spatialalign_trl.arguments.parsing import describe_recipe, parse_recipe
from spatialalign_trl.arguments.prompts import PromptArguments
from spatialalign_trl.arguments.rewards import RewardArguments
from spatialalign_trl.evaluation import EVALUATION_SEED
from spatialalign_trl.files import read_json
from spatialalign_trl.online.config import OnlineSpatialAlignConfig
from spatialalign_trl.rewards.runner import RewardRunner
from spatialalign_trl.rollout.sampler import noise_seed
from spatialalign_trl.video import Video, read_video

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REPO = "tester/smoke-lora"
TYPES = (PromptArguments, RewardArguments, OnlineSpatialAlignConfig, ModelArguments)
SMALL = ["--max_steps", "4", "--save_steps", "2", "--max_train_prompts", "6", "--max_eval_prompts", "3"]


@pytest.fixture(scope="module")
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture(scope="module")
def finished(hub, tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("smoke")
    push = ["--push_to_hub", "--hub_model_id", REPO, "--hub_always_push", "--hub_token", hub.token]
    line = ["recipes/spatialalign.py", "--config=recipes/configs/smoke.yaml", "--output_dir", str(folder / "run")]
    done = subprocess.run(
        [sys.executable, *line, "--use_cpu", *SMALL, *push],
        cwd=ROOT, env=hub.environment(folder / "home", token=None), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return folder / "run", done.stdout + done.stderr


@pytest.mark.slow
def test_everything_is_there_and_the_token_is_nowhere(finished, hub):
    folder, printed = finished
    files = hub.files("model", REPO)
    wanted = {"pytorch_lora_weights.safetensors", "README.md", "results.json", "recipe.yaml", "videos/1_aligned.mp4"}
    assert wanted <= set(files)
    messages = [commit.message for commit in hub.repo("model", REPO).branches["main"]]
    assert messages[1:3] == [f"Round 1: Training in progress, step {step}" for step in (2, 4)]
    assert messages[-1] == "End of training"
    token = hub.token.encode()
    assert hub.token not in printed
    assert all(
        token not in data for commit in hub.repo("model", REPO).branches["main"] for data in commit.files.values()
    )
    assert all(token not in file.read_bytes() for file in folder.rglob("*") if file.is_file())


@pytest.mark.slow
def test_the_cards_recipe_runs_the_same_job_again(finished, hub, tmp_path):
    files = hub.files("model", REPO)
    card = ModelCard(files["README.md"].decode())
    assert "accelerate launch recipes/spatialalign.py --config recipes/configs/smoke.yaml" in card.text
    assert "--max_steps 4" in card.text and "--hub_token ..." in card.text
    assert files["recipe.yaml"].decode() in card.text
    (tmp_path / "recipe.yaml").write_bytes(files["recipe.yaml"])
    line = ["--config", "recipes/configs/smoke.yaml", "--output_dir", str(finished[0]), "--use_cpu", *SMALL]
    again = parse_recipe(TYPES, arguments=["--config", str(tmp_path / "recipe.yaml"), "--push_to_hub", "false"])
    for first, second in zip(parse_recipe(TYPES, arguments=line), again, strict=True):
        differing = {k for k, v in vars(first).items() if vars(second)[k] != v}
        assert not differing - {"hub_model_id", "hub_always_push", "accelerator_config", "distributed_state"}


def run_in_fresh_process(code: str, folder: Path, environment: dict[str, str]) -> Video:
    """Run the code on how to use a LoRA as it is printed, and read the video that it writes."""
    done = subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", code],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "deprecated" not in done.stderr
    return read_video(folder / "video.mp4")


def code_of(place: str, folder: Path, hub: LoopbackHub) -> str:
    """Return the code that uses the LoRA in the pushed card, on the page, or in the README."""
    if place == "page":
        page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
        return re.search(r"import torch\nfrom diffusers.*?crf=0\)\n", page, re.S)[0]
    card = hub.files("model", REPO)["README.md"].decode()
    (code,) = re.findall(r"```python\n(import torch.*?)```", README if place == "readme" else card, re.S)
    return code


@pytest.mark.slow
@pytest.mark.parametrize("place", ["card", "page"])
def test_card_and_page_draw_the_runs_video_in_a_fresh_process_and_it_scores_the_same(finished, hub, tmp_path, place):
    folder = finished[0]
    code = code_of(place, folder, hub)
    assert f'load_lora_weights("{REPO if place == "card" else folder}", ' in code
    drawn = run_in_fresh_process(code, tmp_path, hub.environment(tmp_path / "home"))

    keywords = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.keyword)]
    prompt = next(ast.literal_eval(node.value) for node in keywords if node.arg == "prompt")
    clips = read_json(folder / "report.json")["clips"]
    clip = next(clip for clip in clips if (clip["policy"], clip["row"]["prompt"]) == ("aligned", prompt))
    assert clip["seed"] == EVALUATION_SEED
    own = read_video(folder / clip["video"])
    difference = np.abs(drawn.astype(int) - own)
    assert difference.max() <= 1 and difference.mean() < 0.01  # the run samples in larger batches
    columns = {name: [value] for name, value in clip["row"].items() if name != "prompt"}
    (score,) = RewardRunner("dsr_score")([prompt], [drawn], columns).rewards
    assert score == pytest.approx(clip["reward"], abs=0.01)


@pytest.mark.slow
def test_the_readme_draws_what_the_default_job_samples(finished, hub, tmp_path):
    code = code_of("readme", finished[0], hub)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "tiny").symlink_to(finished[0])
    drawn = run_in_fresh_process(code, tmp_path, hub.environment(tmp_path / "home"))

    # The default job's first card video: the first test prompt, sorted by type, with the first seed.
    arguments = parse_recipe(TYPES, ROOT / "recipes" / "configs" / "tiny.yaml", arguments=[])
    row = sorted(arguments[0].load()[1], key=lambda row: row["type"])[0]
    model = arguments[3].load(device="cpu")
    settings = arguments[2].sampling_settings(model.default_settings())
    seed = noise_seed(EVALUATION_SEED, row["prompt_id"])
    comment = f"videos/1_aligned.mp4: noise_seed({EVALUATION_SEED}, {row['prompt_id']!r}) of rollout/sampler.py"
    usage = model.lora_usage(settings, prompt=row["prompt"], noise_seed=seed, drawn_by_run=comment)
    assert code == usage.code("runs/tiny")

    model.load_lora(finished[0])
    negative = model.encode_prompts([settings.negative_prompt])
    own = model.decode_latents(model.sample(model.encode_rows([row]), negative, [seed], settings))[0]
    np.testing.assert_array_equal(drawn, own)


def test_the_command_and_its_settings_are_described_without_tokens(tmp_path):
    (tmp_path / "mine.yaml").write_text("max_steps: 7\nhub_token: hf_inTheYaml\nreward_funcs: [dsr_score]\n")
    line = [
        "--config",
        str(tmp_path / "mine.yaml"),
        "--output_dir",
        "runs/x",
        "--hub_token=hf_onTheLine",
        "--seed",
        "3",
    ]
    recipe = describe_recipe(parse_recipe(TYPES, arguments=[*line, "--use_cpu"]), arguments=[*line, "--use_cpu"])
    assert "hf_" not in recipe.command + recipe.settings
    assert recipe.command.endswith("--output_dir runs/x --hub_token ... --seed 3 --use_cpu")
    assert recipe.settings.splitlines()[0] == "max_steps: 7"
    for line in ("seed: 3", "output_dir: runs/x", "use_cpu: true", "- dsr_score"):
        assert line in recipe.settings.splitlines()
