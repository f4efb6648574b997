"""
Run several rewards and combine their values; and the convention that rewards follow.

The convention is TRL's, so a reward written for GRPO runs here and vice versa. A reward is a callable (function or
instance, plain or async) that takes keyword arguments only:

    reward(prompts=[...], completions=[video, ...], **prompt_columns, trainer_state=..., log_extra=..., log_metric=...)

and returns one `float | None` per video. `None` means INVALID: this video cannot be judged. A video is a `uint8` array
of shape `(frames, height, width, 3)`. The library knows no particular reward; `rewards/loading.py` finds them.
"""

import logging
import statistics
import traceback
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spatialalign_trl.errors import near_miss
from spatialalign_trl.rewards.calling import LARGEST, AsyncLoop, CallLog, call_rewards, error_text, read_answer
from spatialalign_trl.rewards.combination import Normalization, RewardCombination
from spatialalign_trl.rewards.containment import RewardExit, contained
from spatialalign_trl.rewards.convention import RESERVED, RewardFunc, required_columns, reward_name, signature_of
from spatialalign_trl.rewards.loading import load_reward
from spatialalign_trl.safe_text import mask_text

__all__ = ["RewardFailure", "RewardFunc", "RewardOutput", "RewardRunner", "load_reward"]

logger = logging.getLogger(__name__)

# As in TRL these columns are not passed on, because rewards get them as `prompts` and `completions`.
NOT_PASSED = ("prompt", "completion", "completion_ids")
# Columns `<reward>_error` and `<reward>_settings` beside the scores are the library's.
OWN_COLUMNS = ("error", "settings")
# Over fewer videos a share of failures is not meaningful.
MIN_SAMPLES_FOR_FAILURE = 16


class RewardFailure(RuntimeError):
    """A reward failed on so many videos that the run was stopped."""


@dataclass
class RewardOutput:
    """
    The values of all rewards for `N` videos.

    Args:
        rewards (`list[float | None]`):
            The weighted sum of the rewards that judged the video, not normalised; `None` if no reward with a weight
            did, or if a gate disqualified it.
        per_reward (`dict[str, list[float | None]]`):
            The unweighted values of each reward.
        extra (`dict[str, list]`):
            Columns written through `log_extra`, `N` values each, and `<name>_error` for a reward that failed on some
            videos. With gates, `gate_reason`: why a gate disqualified the video, or `None`.
        metrics (`dict[str, float]`):
            `rewards/<name>/mean`, `rewards/<name>/std`, `rewards/<name>/invalid_rate`, `reward`, `reward_std`, and
            the means of what `log_metric` received; with gates, `disqualified_rate`. A mean of no values is left out,
            and so is a standard deviation of fewer than two.
        errors (`dict[str, list[str]]`):
            The distinct errors in this call, by reward; empty if there were none.
    """

    rewards: list[float | None]
    per_reward: dict[str, list[float | None]]
    extra: dict[str, list]
    metrics: dict[str, float]
    errors: dict[str, list[str]]


class RewardRunner:
    """
    Run rewards on videos and combine their values. A reward that fails leaves its videos INVALID and the run goes on,
    up to a share of failures.

    Args:
        reward_funcs (`str`, callable, or a sequence of them):
            The rewards, or their names as in [`load_reward`].
        reward_weights (sequence of `float`, *optional*):
            One weight per reward; by default 1.0, or 0 for a reward with a gate. A reward of weight 0 is only logged:
            it cannot make a video valid.
        max_failure_share (`float`, *optional*, defaults to `0.5`):
            The share of all videos so far, in [0, 1], on which a reward may fail. It is checked from 16 videos on.
            `None` from a reward is a verdict, not a failure.
        normalization (`str`, *optional*, defaults to `"none"`):
            How values are scaled when samples are compared; see [`RewardCombination`]. The output of a call is never
            normalised, because normalisation needs all samples at once.
        gates (`dict[str, float]`, *optional*):
            Reward -> the minimum value below which a video is INVALID; see [`RewardCombination`].

    Raises:
        `ValueError`: for weights, gates or a normalisation that do not fit, a share out of range, two rewards with the
            same name, or no reward.
        `TypeError`: for a reward that does not take `**kwargs`.
    """

    def __init__(
        self,
        reward_funcs: str | RewardFunc | Sequence[str | RewardFunc],
        reward_weights: Sequence[float] | None = None,
        max_failure_share: float = 0.5,
        normalization: Normalization = "none",
        gates: Mapping[str, float] | None = None,
    ) -> None:
        specs = [reward_funcs] if isinstance(reward_funcs, str) or callable(reward_funcs) else list(reward_funcs)
        if not specs:
            raise ValueError("No reward was given; name at least one, such as 'dsr_score'.")
        if not 0 <= max_failure_share <= 1:
            raise ValueError(f"max_failure_share must be a share in [0, 1], got {max_failure_share}.")
        self.max_failure_share = max_failure_share
        self.reward_funcs = [load_reward(spec) for spec in specs]
        self.names = [reward_name(reward) for reward in self.reward_funcs]
        for name, reward in zip(self.names, self.reward_funcs, strict=True):
            if self.names.count(name) > 1:
                raise ValueError(f"Two rewards are named {name!r}; give one of them another __name__.")
            signature = signature_of(reward)
            if signature and all(p.kind is not p.VAR_KEYWORD for p in signature.parameters.values()):
                raise TypeError(
                    f"The reward {name!r} must end its parameters with **kwargs: as in TRL it is passed every prompt "
                    f"column, trainer_state, log_extra and log_metric. Its signature is {signature}."
                )
        weights = _checked_weights(reward_weights, self.names, gates or {})
        self.combination = RewardCombination(dict(zip(self.names, weights, strict=True)), gates or {}, normalization)
        self._loop = AsyncLoop()
        self._num_videos = 0
        self._failures = dict.fromkeys(self.names, 0)
        self._first_error: dict[str, str] = {}

    def only(self, names: Collection[str]) -> "RewardRunner":
        """
        Return a runner of some of the rewards, with their weights, without gates, and with a new count of failures.

        Args:
            names (collection of `str`):
                The rewards to keep. For all of them, this runner itself is returned.
        """
        if set(names) == set(self.names):
            return self
        rewards = [reward for name, reward in zip(self.names, self.reward_funcs, strict=True) if name in names]
        weights = [self.combination.weights[reward_name(reward)] for reward in rewards]
        return RewardRunner(rewards, weights, self.max_failure_share)

    def check_columns(self, column_names: Iterable[str]) -> None:
        """
        Check that the prompts have the columns the rewards need, before anything is sampled.

        Args:
            column_names (`Iterable[str]`):
                The columns of the prompt dataset.

        Raises:
            `ValueError`: for a missing column, naming the reward, or a column with a reserved name.
        """
        columns = list(column_names)
        for column in columns:
            if column in RESERVED:
                raise ValueError(
                    f"The prompt column {column!r} has the name of another argument of rewards "
                    f"({', '.join(RESERVED)}); rename the column."
                )
        passed = [column for column in columns if column not in NOT_PASSED]
        for name, reward in zip(self.names, self.reward_funcs, strict=True):
            for column in required_columns(reward):
                if column not in passed:
                    raise ValueError(
                        f"The reward {name!r} needs the prompt column {column!r}, which is missing. "
                        f"{near_miss(column, passed)}"
                    )

    def check_prompts(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """
        Check the prompts before anything is sampled: their columns, and their content with the method
        `check_prompts(**columns)` of each reward that has one.

        Args:
            rows (sequence of mappings):
                The prompts, all with the same columns.

        Raises:
            `ValueError`: if there are no prompts, as in [`~RewardRunner.check_columns`], or from a reward's check.
        """
        if not rows:
            raise ValueError("There are no prompts.")
        self.check_columns(rows[0])
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in NOT_PASSED}
        for name, reward in zip(self.names, self.reward_funcs, strict=True):
            check = getattr(reward, "check_prompts", None)
            if check is not None:
                try:
                    with contained(name):
                        check(**columns)
                except (ValueError, RewardExit) as error:
                    raise ValueError(f"The reward {name!r} cannot score these prompts: {error}") from error

    def describe(self) -> dict[str, Any]:
        """Return the settings of each reward by name, from its method `describe()`; `None` for one without it."""
        described = {}
        for name, reward in zip(self.names, self.reward_funcs, strict=True):
            with contained(name):
                described[name] = reward.describe() if hasattr(reward, "describe") else None
        return described

    def release(self) -> None:
        """Free the models of every reward that has a method `release()`; the next video loads them again. One that
        fails only loses memory, so it is a warning."""
        for name, reward in zip(self.names, self.reward_funcs, strict=True):
            if hasattr(reward, "release"):
                try:
                    with contained(name):
                        reward.release()
                except Exception as error:
                    logger.warning("The reward %r did not release its models: %s", name, error_text(error))

    def __call__(
        self,
        prompts: Sequence[str],
        completions: Sequence[Any],
        columns: Mapping[str, Sequence[Any]] | None = None,
        trainer_state: Any = None,
    ) -> RewardOutput:
        """
        Judge `N` videos.

        Args:
            prompts (sequence of `N` `str`):
                The prompts.
            completions (sequence of `N` videos):
                `uint8` arrays of shape `(frames, height, width, 3)`.
            columns (mapping of `str` to sequences of `N`, *optional*):
                The other columns of the prompts.
            trainer_state (*optional*):
                Passed on to the rewards.

        Raises:
            `ValueError`: for different lengths, or a missing column.
            `RewardFailure`: if a reward has failed on more than `max_failure_share` of the videos so far.
        """
        # 1. Check the columns
        count, columns = len(completions), dict(columns or {})
        for name, values in {"prompts": prompts, **columns}.items():
            if len(values) != count:
                raise ValueError(f"{name} has {len(values)} entries for {count} videos.")
        self.check_columns(columns)
        arguments = {name: values for name, values in columns.items() if name not in NOT_PASSED}
        arguments |= {"prompts": prompts, "completions": completions}

        # 2. Call every reward
        log = CallLog(count, {"gate_reason", *(f"{name}_{fact}" for name in self.names for fact in OWN_COLUMNS)})
        rewards = dict(zip(self.names, self.reward_funcs, strict=True))
        answers = call_rewards(rewards, arguments, trainer_state, log, self._loop)

        # 3. Read the answers. Unusable values become INVALID and count as failures.
        per_reward, extra, errors = {}, log.columns, {}
        for name in self.names:
            per_reward[name], problems = read_answer(answers[name], count)
            if any(problems):
                errors[name] = list(dict.fromkeys(problem for problem in problems if problem))
                extra[f"{name}_error"] = problems
                self._count_failures(name, problems, answers[name])
        self._num_videos += count
        self._stop_after_too_many_failures()

        # 4. Combine the values
        videos = [{name: values[k] for name, values in per_reward.items()} for k in range(count)]
        combined = [self.combination.combined(values) for values in videos]

        # 5. Compute the metrics
        metrics = {name: statistics.fmean(values) for name, values in log.metrics.items()}
        for name, values in per_reward.items():
            metrics |= _mean_and_std(values, f"rewards/{name}/mean", f"rewards/{name}/std")
            if count:
                metrics[f"rewards/{name}/invalid_rate"] = values.count(None) / count
        if self.combination.gates:
            extra["gate_reason"] = reasons = [self.combination.gate_reason(values) for values in videos]
            if count:
                metrics["disqualified_rate"] = sum(reason is not None for reason in reasons) / count
        metrics |= _mean_and_std(combined, "reward", "reward_std")
        return RewardOutput(combined, per_reward, extra, metrics, errors)

    def _count_failures(self, name: str, problems: Sequence[str | None], answer: Any) -> None:
        """Count and log the videos on which a reward failed, with the traceback the first time."""
        failed = [problem for problem in problems if problem is not None]
        is_first = name not in self._first_error
        self._first_error.setdefault(name, failed[0])
        self._failures[name] += len(failed)
        details = failed[0]
        if is_first and isinstance(answer, BaseException):
            details += "\n" + mask_text("".join(traceback.format_exception(answer)))
        logger.warning("The reward %r failed on %d videos, which are INVALID: %s", name, len(failed), details)

    def _stop_after_too_many_failures(self) -> None:
        """Raise a [`RewardFailure`] if a reward has failed on too large a share of the videos so far."""
        if self._num_videos < MIN_SAMPLES_FOR_FAILURE:
            return
        for name, failed in self._failures.items():
            if failed > self.max_failure_share * self._num_videos:
                raise RewardFailure(
                    f"The reward {name!r} failed on {failed} of {self._num_videos} videos, more than the allowed "
                    f"share of {self.max_failure_share}. The first error: {self._first_error[name]}. Fix the reward, "
                    "or raise max_failure_share."
                )


def _checked_weights(weights: Sequence[float] | None, names: Sequence[str], gates: Mapping[str, float]) -> list[float]:
    """Return one finite weight per reward: those given, or the defaults."""
    if weights is None:
        return [0.0 if name in gates else 1.0 for name in names]
    if len(weights) != len(names):
        raise ValueError(
            f"{len(names)} rewards need {len(names)} weights, got {len(weights)} ({list(weights)} for "
            f"{', '.join(names)}). If you set reward_funcs, set reward_weights as well."
        )
    if not all(abs(weight) <= LARGEST for weight in weights):
        raise ValueError(
            f"Reward weights must be finite numbers of at most {LARGEST:g} in magnitude, got {list(weights)}."
        )
    return [float(weight) for weight in weights]


def _mean_and_std(values: list[float | None], mean_name: str, std_name: str) -> dict[str, float]:
    known = [value for value in values if value is not None]
    mean = {mean_name: statistics.fmean(known)} if known else {}
    return mean | ({std_name: statistics.stdev(known)} if len(known) > 1 else {})
