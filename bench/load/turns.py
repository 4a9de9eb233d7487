"""The flags of conversations: how many turns they have, how many there are at once, what lies between two turns.

Names and defaults are those of vLLM's `vllm-bench --multi-turn` (rust/src/bench in its repository).
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from cyclopts import Parameter

from loraplex.bench.errors import OptionsInvalid
from loraplex.bench.load.flags import AtLeastOne, Flag, NotNegative
from loraplex.bench.load.options import Data, Traffic
from loraplex.bench.load.target import Target

DEFAULT_TURNS = 3
WITH_TURNS = ("random", "sharegpt", "custom")
"""Datasets that conversations can be had of."""


@Parameter(name="*", group="Conversations")
@dataclass(frozen=True, kw_only=True)
class Turns:
    """Conversations in the place of single requests."""

    multi_turn: Flag = False
    "Send the turns of a conversation one after another, each after the answers so far; --num-prompts counts them."

    multi_turn_num_turns: AtLeastOne | None = None
    "Turns of a random conversation; 3 unless given."

    multi_turn_min_turns: AtLeastOne | None = None
    "Fewest of a random one, where they differ."

    multi_turn_max_turns: AtLeastOne | None = None
    "Most of a random one, where they differ; where a file's are cut off."

    multi_turn_concurrency: AtLeastOne | None = None
    "Conversations at the same time, pauses included; --max-concurrency unless given."

    multi_turn_delay_ms: NotNegative = 0
    "Milliseconds from an answer to the next turn, as a user thinks."

    per_turn_input_len: AtLeastOne | None = None
    "Tokens that a random turn after the first adds; as many as the first unless given."

    def check(self, target: Target, data: Data) -> None:
        """Raises OptionsInvalid."""
        if not self.multi_turn:
            given = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
            if given:
                raise OptionsInvalid(f"--{given[0].replace('_', '-')} is of conversations: give --multi-turn")
            return
        if not target.chat:
            raise OptionsInvalid("--multi-turn sends messages of a chat: give --backend openai-chat")
        if data.dataset_name not in WITH_TURNS:
            raise OptionsInvalid(
                f"--dataset-name {data.dataset_name} has no conversations: with --multi-turn give random, sharegpt or "
                "custom"
            )
        if data.dataset_name == "random":
            _ = self.lengths
            return
        for name in ("multi_turn_num_turns", "multi_turn_min_turns", "per_turn_input_len"):
            if getattr(self, name) is not None:
                raise OptionsInvalid(
                    f"--{name.replace('_', '-')} is of random conversations, and those of a file have turns of their "
                    "own: leave it out; --multi-turn-max-turns cuts them off"
                )

    @property
    def lengths(self) -> tuple[int, int]:
        """Fewest and most turns of a random conversation. Raises OptionsInvalid."""
        count = self.multi_turn_num_turns or DEFAULT_TURNS
        if self.multi_turn_num_turns and self.multi_turn_min_turns and self.multi_turn_max_turns:
            raise OptionsInvalid("--multi-turn-min-turns and -max-turns say how many: leave out --multi-turn-num-turns")
        least, most = self.multi_turn_min_turns or count, self.multi_turn_max_turns or count
        if least > most:
            raise OptionsInvalid(
                f"conversations cannot have at least {least} and at most {most} turns: lower --multi-turn-min-turns, "
                "or raise --multi-turn-max-turns"
            )
        return least, most

    def at_once(self, traffic: Traffic) -> int | None:
        """How many conversations there may be at the same time."""
        return (self.multi_turn_concurrency or traffic.max_concurrency) if self.multi_turn else None
