"""Command-line arguments that name the rewards, and the code that loads them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from spatialalign_trl.errors import near_miss
from spatialalign_trl.models.ranges import check_fields
from spatialalign_trl.rewards.remote import shown_url
from spatialalign_trl.safe_text import MASK, is_masked, mask_secrets, mask_text

if TYPE_CHECKING:
    from spatialalign_trl.rewards.convention import RewardFunc


@dataclass
class RewardArguments:
    """Arguments that name the rewards and their options."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["dsr_score"],
        metadata={
            "help": "Rewards: names of installed ones, path/to/file.py:Name, http://host:port/path of a server, or "
            "user/name@COMMIT on the Hub."
        },
    )
    trust_remote_code: bool = field(
        default=False,
        metadata={"help": "Execute the code of rewards on the Hub, each at the commit that reward_funcs names."},
    )
    reward_options: dict[str, Any] | str | None = field(
        default=None,
        metadata={
            "help": "Options of each reward in reward_funcs, by its name there. In YAML `reward_options: "
            "{dsr_score: {tracker: grounded_sam}}`, as a flag the same in JSON."
        },
    )

    def __post_init__(self) -> None:
        check_fields(self)
        self.reward_options = from_json(self.reward_options, "reward_options")
        options = self.reward_options or {}
        if not isinstance(options, dict) or not all(isinstance(value, dict) for value in options.values()):
            raise ValueError(f"reward_options={mask_secrets(options)!r}: expected {{reward: {{option: value}}}}.")
        for name in options:
            if is_masked(options[name]):
                raise ValueError(
                    f"reward_options of {shown_url(name)!r}: {MASK} stands in the place of a secret, which was not "
                    "written into the recipe. Put it in again, or let the reward read it from an environment variable."
                )
            if name not in self.reward_funcs:
                known = map(shown_url, self.reward_funcs)
                raise ValueError(
                    f"reward_options: {shown_url(name)!r} is not in reward_funcs. {near_miss(shown_url(name), known)}"
                )

    def options_for(self, reward: str) -> dict[str, Any]:
        """
        Return the options that a reward is created with.

        Args:
            reward (`str`):
                The reward's name in `reward_funcs`.
        """
        return dict((self.reward_options or {}).get(reward, {}))

    def load_rewards(self) -> list[RewardFunc]:
        """Create the rewards with their options, in the order of `reward_funcs`."""
        from spatialalign_trl.rewards.loading import load_reward

        return [
            load_reward(name, trust_remote_code=self.trust_remote_code, **self.options_for(name))
            for name in self.reward_funcs
        ]


@dataclass
class SceneRewardArguments(RewardArguments):
    """Arguments that name the rewards of a recipe for scene tasks."""

    reward_funcs: list[str] = field(
        default_factory=lambda: ["scene_navigation"],
        metadata={"help": "Rewards, as in recipes/spatialalign.py: scene_navigation, object_grounding, or your own."},
    )


def from_json(value: Any, name: str) -> Any:
    """
    Parse an argument that is a mapping in a YAML file and JSON text as a flag.

    Args:
        value (`Any`):
            The argument's value. Only a `str` is parsed; anything else is returned as it is.
        name (`str`):
            The argument's name, for the error message.

    Raises:
        ValueError: If the text is not JSON.
    """
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError as error:
        raise ValueError(f"{name}={mask_text(value)!r} is not JSON: {error}.") from error
