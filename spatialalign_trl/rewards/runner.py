"""
Rewards: the convention they follow, and how several of them are run and combined.

The convention is TRL's, so that a reward written for GRPO runs here and the other way round. A reward is a callable
(function or instance, plain or async) that takes keyword arguments only:

    reward(prompts=[...], completions=[video, ...], **prompt_columns, trainer_state=..., log_extra=..., log_metric=...)

and returns one `float | None` per video, `None` meaning INVALID: this video cannot be judged. A video is a `uint8`
array of shape `(frames, height, width, 3)`. The library knows no concrete reward; `rewards/loading.py` finds them.
"""

import functools
import inspect
import logging
import math
import statistics
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from spatialalign_trl.errors import near_miss
from spatialalign_trl.rewards.calling import AsyncLoop, CallLog, is_async, read_answer
from spatialalign_trl.rewards.combination import Normalization, RewardCombination
from spatialalign_trl.rewards.convention import RESERVED, RewardFunc, required_columns, reward_name, signature_of
from spatialalign_trl.rewards.loading import load_reward

__all__ = ["RewardFailure", "RewardFunc", "RewardOutput", "RewardRunner", "load_reward"]

logger = logging.getLogger(__name__)

# Columns that are not passed on, as in TRL: they are `prompts` and `completions` already.
NOT_PASSED = ("prompt", "completion", "completion_ids")
# Before that many videos a share of failures says nothing.
MIN_SAMPLES_FOR_FAILURE = 16


class RewardFailure(RuntimeError):
    """A reward failed on too many videos for the run to be worth going on."""


@dataclass
class RewardOutput:
    """
    What the rewards said about `N` videos.

    Args:
        rewards (`list[float | None]`):
            Weighted sum of the rewards that judged the video, as they are (not normalised); `None` when none with a
            weight did, or a gate disqualified it.
        per_reward (`dict[str, list[float | None]]`):
            Each reward's own values, unweighted.
        extra (`dict[str, list]`):
            Columns written through `log_extra`, `N` values each, and `<name>_error` of a reward that failed on some.
            With gates, `gate_reason`: why one disqualified the video, or `None`.
        metrics (`dict[str, float]`):
            `rewards/<name>/mean`, `rewards/<name>/std`, `rewards/<name>/invalid_rate`, `reward`, `reward_std`, and
            what `log_metric` was given; with gates, `disqualified_rate`. A mean of nothing is left out, and so is a
            deviation of fewer than two values.
        errors (`dict[str, list[str]]`):
            What went wrong in this call, by reward; empty when nothing did.
    """

    rewards: list[float | None]
    per_reward: dict[str, list[float | None]]
    extra: dict[str, list]
    metrics: dict[str, float]
    errors: dict[str, list[str]]


class RewardRunner:
    """
    Runs rewards on videos and adds them up. A reward that fails leaves its videos INVALID and the run goes on, as long
    as that stays below a share.

    Args:
        reward_funcs (`str`, callable, or a sequence of them):
            As in [`load_reward`].
        reward_weights (sequence of `float`, *optional*):
            One each; by default 1.0, and 0 for a reward that has a gate. A reward of weight 0 is only logged: it
            cannot make a video valid.
        max_failure_share (`float`, *optional*, defaults to `0.5`):
            Share of all videos so far, in [0, 1], on which a reward may fail (after at least 16 videos). `None` from a
            reward is a verdict and no failure.
        normalization (`str`, *optional*, defaults to `"none"`):
            How values are scaled where samples are compared; see [`RewardCombination`]. What a call returns is not
            normalised: that takes all samples at once.
        gates (`dict[str, float]`, *optional*):
            Reward -> the least value a video needs not to be INVALID; see [`RewardCombination`].

    Raises:
        `ValueError`: for weights, gates or a normalisation that do not fit, a share out of range, two rewards of one
            name, or no reward.
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
                    f"The reward {name!r} must end its parameters with **kwargs: as in TRL it is handed every prompt "
                    f"column, and trainer_state, log_extra and log_metric. Its signature is {signature}."
                )
        weights = _checked_weights(reward_weights, self.names, gates or {})
        self.combination = RewardCombination(dict(zip(self.names, weights, strict=True)), gates or {}, normalization)
        self._loop = AsyncLoop()
        self._graded = 0
        self._failed = dict.fromkeys(self.names, 0)
        self._first_error: dict[str, str] = {}

    def only(self, names: Collection[str]) -> "RewardRunner":
        """A runner of those of the rewards that are named, with their weights, no gates, and its own count of
        failures; this one for all of them."""
        if set(names) == set(self.names):
            return self
        rewards = [reward for name, reward in zip(self.names, self.reward_funcs, strict=True) if name in names]
        weights = [self.combination.weights[reward_name(reward)] for reward in rewards]
        return RewardRunner(rewards, weights, self.max_failure_share)

    def check_columns(self, column_names: Iterable[str]) -> None:
        """
        Check that the prompts have what the rewards need, before anything is sampled.

        Args:
            column_names (`Iterable[str]`):
                The columns of the prompt dataset.

        Raises:
            `ValueError`: naming the reward and the column it misses, or a column whose name is taken.
        """
        columns = list(column_names)
        for column in columns:
            if column in RESERVED:
                raise ValueError(
                    f"The prompt column {column!r} has the name of an argument that rewards are handed "
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
        Check the prompts themselves, before anything is sampled: their columns, and whatever a reward with a method
        `check_prompts(**columns)` says of their content.

        Args:
            rows (sequence of mappings):
                The prompts, all with the same columns.

        Raises:
            `ValueError`: when there are no prompts; as in [`~RewardRunner.check_columns`]; and what a reward raises.
        """
        if not rows:
            raise ValueError("There are no prompts.")
        self.check_columns(rows[0])
        columns = {name: [row[name] for row in rows] for name in rows[0] if name not in NOT_PASSED}
        for name, reward in zip(self.names, self.reward_funcs, strict=True):
            check = getattr(reward, "check_prompts", None)
            if check is not None:
                try:
                    check(**columns)
                except ValueError as error:
                    raise ValueError(f"The reward {name!r} cannot score these prompts: {error}") from error

    def describe(self) -> dict[str, Any]:
        """What each reward says it was made with, by name: its `describe()`, or `None` when it has no such method."""
        parts = zip(self.names, self.reward_funcs, strict=True)
        return {name: reward.describe() if hasattr(reward, "describe") else None for name, reward in parts}

    def release(self) -> None:
        """Let every reward that has a method `release()` free its models; the next video loads them again."""
        for reward in self.reward_funcs:
            if hasattr(reward, "release"):
                reward.release()

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
                Handed on to the rewards.

        Raises:
            `ValueError`: when lengths differ or a column is missing.
            `RewardFailure`: when a reward has failed on more than `max_failure_share` of the videos so far.
        """
        count, columns = len(completions), dict(columns or {})
        for name, values in {"prompts": prompts, **columns}.items():
            if len(values) != count:
                raise ValueError(f"{name} has {len(values)} entries for {count} videos.")
        self.check_columns(columns)
        passed = {name: list(values) for name, values in columns.items() if name not in NOT_PASSED}
        extra, logged = {}, {}
        answers = self._call_all(prompts, completions, passed, trainer_state, CallLog(count, extra, logged))

        per_reward, errors = {}, {}
        for name, answer in zip(self.names, answers, strict=True):
            values, problems = read_answer(answer, count)
            per_reward[name] = values
            if any(problems):
                errors[name] = list(dict.fromkeys(problem for problem in problems if problem))
                extra[f"{name}_error"] = problems
                self._note_failure(name, errors[name][0], sum(problem is not None for problem in problems), answer)
        self._graded += count
        self._stop_if_hopeless()

        videos = [{name: values[k] for name, values in per_reward.items()} for k in range(count)]
        rewards = [self.combination.combined(values) for values in videos]
        metrics = {name: statistics.fmean(values) for name, values in logged.items()}
        for name, values in per_reward.items():
            metrics |= _mean_and_std(values, f"rewards/{name}/mean", f"rewards/{name}/std")
            if count:
                metrics[f"rewards/{name}/invalid_rate"] = values.count(None) / count
        if self.combination.gates:
            extra["gate_reason"] = reasons = [self.combination.gate_reason(values) for values in videos]
            if count:
                metrics["disqualified_rate"] = sum(reason is not None for reason in reasons) / count
        metrics |= _mean_and_std(rewards, "reward", "reward_std")
        return RewardOutput(rewards, per_reward, extra, metrics, errors)

    def _call_all(
        self, prompts: Sequence[str], completions: Sequence[Any], columns: dict[str, list], state: Any, log: CallLog
    ) -> list[Any]:
        """Each reward's answer, or the exception it raised. Async rewards are started first and wait, all at once,
        while the plain ones run in turn."""
        answers: dict[str, Any] = {}
        waiting: dict[str, Future] = {}
        named = zip(self.names, self.reward_funcs, strict=True)
        try:
            for name, reward in sorted(named, key=lambda one: not is_async(one[1])):
                arguments = {"prompts": list(prompts), "completions": list(completions), **columns}
                hooks = {"log_extra": functools.partial(log.extra, name), "log_metric": log.metric}
                try:
                    answer = reward(**arguments, trainer_state=state, **hooks)
                except Exception as error:  # a reward is somebody's code: whatever it raises is its answer
                    answer = error
                if inspect.isawaitable(answer):
                    waiting[name] = self._loop.start(answer)
                else:
                    answers[name] = answer
            answers |= {name: future.result() for name, future in waiting.items()}
        finally:
            for future in waiting.values():  # after Ctrl-C nobody asks for them
                future.cancel()
        return [answers[name] for name in self.names]

    def _note_failure(self, name: str, problem: str, count: int, answer: Any) -> None:
        first = name not in self._first_error
        self._first_error.setdefault(name, problem)
        self._failed[name] += count
        logger.warning(
            "The reward %r failed on %d videos, which are INVALID: %s",
            name,
            count,
            problem,
            exc_info=answer if first and isinstance(answer, BaseException) else None,
        )

    def _stop_if_hopeless(self) -> None:
        if self._graded < MIN_SAMPLES_FOR_FAILURE:
            return
        for name, failed in self._failed.items():
            if failed > self.max_failure_share * self._graded:
                raise RewardFailure(
                    f"The reward {name!r} failed on {failed} of {self._graded} videos, more than the allowed share of "
                    f"{self.max_failure_share}. The first error: {self._first_error[name]}. Mend the reward, or raise "
                    "max_failure_share."
                )


def _checked_weights(weights: Sequence[float] | None, names: Sequence[str], gates: Mapping[str, float]) -> list[float]:
    if weights is None:
        return [0.0 if name in gates else 1.0 for name in names]
    if len(weights) != len(names):
        raise ValueError(
            f"{len(names)} rewards need {len(names)} weights, got {len(weights)} ({list(weights)} for "
            f"{', '.join(names)}): whoever gives other reward_funcs gives their reward_weights, too."
        )
    if not all(map(math.isfinite, weights)):
        raise ValueError(f"Reward weights must be finite numbers, got {list(weights)}.")
    return [float(weight) for weight in weights]


def _mean_and_std(values: list[float | None], mean_name: str, std_name: str) -> dict[str, float]:
    known = [value for value in values if value is not None]
    named = {mean_name: statistics.fmean(known)} if known else {}
    return named | ({std_name: statistics.stdev(known)} if len(known) > 1 else {})
