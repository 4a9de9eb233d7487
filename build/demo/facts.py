"""Facts as questions and answers: the types, and the rule that keeps some of them out of training."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field

ABOUT = ("And {s}?", "What about {s}?", "How about {s}?", "And what about {s}?")
"""Follow-up questions that fit any relation with a subject `s`."""


@dataclass(frozen=True)
class Fact:
    """One thing to know. `slots` fill the wordings of its relation; `short` answers in a word or two."""

    slots: Mapping[str, str]
    answer: str
    short: str


@dataclass(frozen=True)
class Relation:
    """Facts that are asked for in the same words.

    `unseen` wordings are never trained on. `follow_ups` ask the same about another subject, `pronouns` ask it about the
    subject of the turn before ("And its capital?"), where `group` says what the subjects are. `statements` tell a fact
    in prose, with the slots and {short}. Where `computed` is true, one fact in ten is never trained on at all: its
    answer has to be worked out.
    """

    name: str
    facts: tuple[Fact, ...]
    wordings: tuple[str, ...]
    unseen: tuple[str, ...]
    follow_ups: tuple[str, ...] = ()
    pronouns: tuple[str, ...] = ()
    statements: tuple[str, ...] = ()
    group: str = ""
    weight: float = 1.0
    computed: bool = False
    by_subject: dict[str, Fact] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_subject", {fact.slots["s"]: fact for fact in self.facts if "s" in fact.slots})

    def held_out(self, fact: Fact, wording: str) -> bool:
        """Whether this wording of this fact is kept for the evaluation."""
        return wording in self.unseen or _bucket(self.name, fact, "" if self.computed else wording) == 0


def fact(answer: str, short: str, **slots: str) -> Fact:
    """Build a Fact; the first letter of its answer becomes a capital."""
    return Fact(slots, answer[0].upper() + answer[1:], short)


def _bucket(name: str, fact: Fact, wording: str) -> int:
    """A number in 0..9 that depends on the text alone, so that it is the same in every run."""
    return zlib.crc32("/".join((name, *fact.slots.values(), wording)).encode()) % 10
