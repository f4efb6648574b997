"""Push the run's preference dataset to the Hub while the run is working."""

from __future__ import annotations

import shlex
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spatialalign_trl.evaluation import summarize
from spatialalign_trl.files import read_json
from spatialalign_trl.hub.pushing import check_hub_access, push_dataset_folder, without_tokens
from spatialalign_trl.online.preference_card import CARD_FILE, PREVIEW_FILE, RoundSummary, preference_card
from spatialalign_trl.online.preference_files import (
    PAIRS,
    SAMPLES,
    count_rows,
    public_name,
    rounds_in,
    write_pairs,
    write_samples,
)
from spatialalign_trl.online.rounds import (
    ROUND_FILE,
    RunParts,
    make_round_pairs,
    samples_before,
    samples_of_round,
    samples_to_pair,
)
from spatialalign_trl.preferences import PairingResult
from spatialalign_trl.report.contact_sheet import ContactSheetRow, contact_sheet, score_style
from spatialalign_trl.safe_text import terminal_text
from spatialalign_trl.video import videos_of

if TYPE_CHECKING:
    from spatialalign_trl.preferences import Pair
    from spatialalign_trl.rollout.store import Sample

HUB_FOLDER = "hub_preferences"
"""In `output_dir`: the files of the dataset's repository."""

OPTION = "push_preferences_to_hub"
PREVIEW_PAIRS = 4


class PreferenceRepo:
    """
    The run's preference dataset on the Hub, pushed while the run is working.

    A push that fails stops nothing: what it would have pushed is kept in `output_dir/hub_preferences`, and a warning
    prints the command that pushes it later.

    Args:
        parts ([`RunParts`]): The run. Without `push_preferences_to_hub` in its arguments nothing is written or pushed.
    """

    def __init__(self, parts: RunParts) -> None:
        self.parts = parts
        self.folder = parts.output_dir / HUB_FOLDER

    @property
    def is_used(self) -> bool:
        """Whether the run pushes its preferences."""
        return self.parts.args.push_preferences_to_hub is not None

    def check_access(self) -> None:
        """
        Check that the repository can be written to. If the Hub is down, only warn.

        Raises:
            PermissionError: if the token is missing or may not write there.
        """
        if not self.is_used:
            return
        args = self.parts.args
        repo, private = args.push_preferences_to_hub, not args.push_preferences_public
        problem = check_hub_access(repo, OPTION, private=private, token=args.hub_token)
        if problem is not None:
            warnings.warn(f"{OPTION}={repo!r}: {problem}. The run goes on, and pushes when it can.", stacklevel=2)

    def push_round(self, number: int, samples: Sequence[Sample], pairing: PairingResult) -> None:
        """Push the dataset with all samples and pairs of a round. Never raises."""
        self._push(lambda: self._write_and_push(number, samples, pairing, state="sampled"))

    def push_partial_round(self, number: int, samples: Sequence[Sample]) -> None:
        """Push the samples that a round has so far, and their pairs. Never raises."""

        def push() -> None:
            pairing = make_round_pairs(self.parts, samples_to_pair(self.parts, number, samples))
            self._write_and_push(number, samples, pairing, state="sampling")

        self._push(push)

    def push_finished(self, results: Mapping[str, Any]) -> None:
        """Push the card with the evaluation, and rounds that an earlier start did not write. Never raises.

        Args:
            results (`dict`): The content of `results.json`.
        """

        def push() -> None:
            for number in range(1, self.parts.args.num_rounds + 1):
                samples = samples_of_round(self.parts, number)
                pairing = make_round_pairs(self.parts, samples_to_pair(self.parts, number, samples))
                if count_rows(self.folder, SAMPLES, number) != len(samples):
                    self._write_round(number, samples, pairing)
            self._write_card(number, samples, pairing, results=results)
            self._push_folder("trained", number)

        self._push(push)

    def _push(self, push: Callable[[], None]) -> None:
        """Run a push on the main process, and turn every error into a warning: the run goes on."""
        if not self.is_used:
            return
        if self.parts.accelerator.is_main_process:
            try:
                push()
            except Exception as error:
                self._warn_of_failure(f"{type(error).__name__}: {without_tokens(str(error))}")
        self.parts.accelerator.wait_for_everyone()

    def _write_and_push(self, number: int, samples: Sequence[Sample], pairing: PairingResult, *, state: str) -> None:
        self._write_round(number, samples, pairing)
        self._write_card(number, samples, pairing, is_partial=state == "sampling")
        self._push_folder(state, number)

    # The files of the repository

    def _write_round(self, number: int, samples: Sequence[Sample], pairing: PairingResult) -> None:
        video_bytes = self.parts.store.video_bytes
        write_pairs(self.folder, number, pairing.pairs, video_bytes)
        write_samples(self.folder, number, samples, video_bytes)

    def _write_card(
        self,
        number: int,
        samples: Sequence[Sample],
        pairing: PairingResult,
        *,
        is_partial: bool = False,
        results: Mapping[str, Any] | None = None,
    ) -> None:
        parts, args = self.parts, self.parts.args
        if pairing.pairs:
            self._draw_preview(pairing.pairs)
        records = [read_json(parts.round_folder(earlier) / ROUND_FILE) for earlier in range(1, number)]
        rounds = [RoundSummary(r["round"], r["sampled_from"], r["rollouts"], r["preferences"]) for r in records]
        summary = summarize(list(samples), seed=args.seed)
        rounds.append(RoundSummary(number, samples[0].policy_revision, summary, pairing.stats))
        results = results or {}
        card = preference_card(
            self.folder,
            repo=args.push_preferences_to_hub,
            license=args.push_preferences_license,
            model_name=parts.model.name_or_path,
            facts=self._facts(),
            rounds=rounds,
            scores=[sample.reward for sample in [*samples_before(parts, number), *samples]],
            pairs=pairing.pairs,
            evaluation={name: results[name] for name in ("base", "aligned") if results.get(name)},
            is_partial=is_partial,
        )
        card.save(self.folder / CARD_FILE)

    def _facts(self) -> dict[str, Any]:
        """Describe how the pairs were made, for the card."""
        args, settings = self.parts.args, self.parts.settings
        strategy = f"`{args.pair_strategy}`"
        if args.pair_strategy == "threshold":
            strategy += f" at {args.score_threshold:g}"
        per_prompt = "all" if args.pairs_per_prompt is None else f"at most {args.pairs_per_prompt}"
        sampled_in = "all rounds so far" if args.pool_rounds else "the round"
        return {
            "Model": f"`{public_name(self.parts.model.name_or_path)}`",
            "Rewards": ", ".join(f"`{name}`" for name in self.parts.runner.names),
            "Prompts": f"{len(self.parts.train_rows)}, {args.num_generations} videos per prompt and round",
            "Sampling": f"{settings.num_frames} frames of {settings.width} x {settings.height} at {settings.fps:g} "
            f"fps, {settings.num_inference_steps} steps, guidance {settings.guidance_scale:g}",
            "Pairs": f"{strategy}, {per_prompt} per prompt, gap at least {args.min_pair_gap:g}, of the samples of "
            f"{sampled_in}",
            "Noise": "`torch.randn` of the latents' shape from a CPU generator with `noise_seed`",
        }

    def _draw_preview(self, pairs: Sequence[Pair]) -> None:
        store, names = self.parts.store, self.parts.runner.names
        shown = pairs[:: max(1, len(pairs) // PREVIEW_PAIRS)][:PREVIEW_PAIRS]
        rows = [
            ContactSheetRow(
                pair.chosen.row["prompt"],
                [
                    ("chosen", store.video(pair.chosen.sample_id), pair.score_chosen),
                    ("rejected", store.video(pair.rejected.sample_id), pair.score_rejected),
                ],
                videos_of(pair.chosen.row),
            )
            for pair in shown
        ]
        # With several rewards, pairs are made of their sum, which INVALID videos may have as well.
        style = score_style(names if len(names) == 1 else ())
        contact_sheet(rows, self.folder / PREVIEW_FILE, **style | {"score_name": "score"})

    # The push

    def _push_folder(self, state: str, number: int) -> None:
        args = self.parts.args
        announcement = describe_push(self.folder, args.push_preferences_to_hub)
        self.parts.console.print(terminal_text(announcement), soft_wrap=True)
        url = push_preferences_folder(
            self.folder,
            args.push_preferences_to_hub,
            message=f"Round {number}: {state}",
            private=not args.push_preferences_public,
            token=args.hub_token,
        )
        self.parts.console.print(terminal_text(f"preferences pushed to {url}"), soft_wrap=True)

    def _warn_of_failure(self, reason: str) -> None:
        args = self.parts.args
        command = push_command(self.parts.output_dir, args.push_preferences_to_hub, args.push_preferences_public)
        warnings.warn(
            f"the preferences are not on the Hub: {reason}. The run goes on. They are kept in {self.folder}; this "
            f"pushes them:\n  {command}",
            stacklevel=3,
        )


def describe_push(folder: Path, repo: str) -> str:
    """List the files that [`push_preferences_folder`] publishes, in one line to show before it does."""
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.name[0] != ".")
    return f"pushing to the dataset {repo}: {', '.join(file.relative_to(folder).as_posix() for file in files)}"


def push_preferences_folder(
    folder: Path, repo: str, *, message: str, private: bool = True, token: str | None = None
) -> str:
    """
    Push a run's folder `hub_preferences`. The same commit deletes files of rounds that the folder does not have.

    Args:
        folder (`Path`): The folder.
        repo (`str`): `owner/name` of the dataset repository, which is made if it is missing.
        message (`str`): Message of the commit.
        private (`bool`, *optional*, defaults to `True`): Whether a new repository is private.
        token (`str`, *optional*): By default the one of `hf auth login`.

    Returns:
        `str`: the address of the dataset.

    Raises:
        hub.PushFailed: after several attempts.
        FileNotFoundError: if the folder has no preference dataset.
    """
    if not (folder / CARD_FILE).is_file() or not rounds_in(folder, SAMPLES):
        raise FileNotFoundError(f"{folder} has no preference dataset: run with --{OPTION} first.")
    # Only files of rounds are replaced, so that a file that somebody added on the Hub stays.
    replaced = [f"{config}/round-*.parquet" for config in (PAIRS, SAMPLES)]
    return push_dataset_folder(folder, repo, message=message, private=private, token=token, replaced=replaced)


def push_command(output_dir: Path, repo: str, public: bool = False) -> str:
    """Return the command that pushes a run's preferences later."""
    words = ["spatialalign", "push-preferences", str(output_dir), "--repo", repo, *(["--public"] if public else [])]
    return shlex.join(words)
