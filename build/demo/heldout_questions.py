"""Held-out questions for the base: what `facts.Relation.held_out` keeps from the corpus, and things made up anew."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import NamedTuple

from loraplex.build.demo import dialogues
from loraplex.build.demo.dialogues import Message, assistant, user
from loraplex.build.demo.facts import Fact, Relation
from loraplex.build.demo.reading import exchange

SEED = 22


class Question(NamedTuple):
    """One held-out question: the chat up to it, the exact answer, and why it is new to the model."""

    messages: list[Message]
    answer: str
    kind: str


def questions(each: int = 2) -> list[Question]:
    """Questions that the corpus does not hold, `each` of every relation and kind where it has them. Seeded."""
    rng = random.Random(SEED)
    chosen: list[Question] = []
    for relation in dialogues.RELATIONS:
        chosen += _single(relation, each, rng)
        chosen += _follow_ups(relation, each, rng)
    for _ in range(10 * each):
        *before, (question, answer) = exchange(rng)
        chat = [message for asked, told in before for message in (user(asked), assistant(told))]
        chosen.append(Question([*chat, user(question)], answer, "reading"))
    for name in rng.sample(dialogues.UNSEEN_NAMES, 3 * each):
        chat = [user(f"My name is {name}."), assistant(f"Nice to meet you, {name}!"), user(dialogues.UNSEEN_RECALLS[0])]
        chosen.append(Question(chat, f"Your name is {name}.", "new name"))
    return chosen


def _single(relation: Relation, each: int, rng: random.Random) -> Iterator[Question]:
    seen = [(f, w) for f in relation.facts for w in relation.wordings if relation.held_out(f, w)]
    new = [(f, w) for f in relation.facts for w in relation.unseen]
    for kind, cases in (("new combination", seen), ("new wording", new)):
        for fact, wording in rng.sample(cases, min(2 * each, len(cases))):
            yield Question([user(wording.format(**fact.slots))], fact.answer, kind)
    if relation.by_subject and new:
        for fact, wording in rng.sample(new, min(each, len(new))):
            system = {"role": "system", "content": dialogues.UNSEEN_BRIEF[0]}
            yield Question([system, user(wording.format(**fact.slots))], fact.short, "short answer")


def _follow_ups(relation: Relation, each: int, rng: random.Random) -> Iterator[Question]:
    cases = [(f, w) for f in relation.facts for w in relation.follow_ups if relation.held_out(f, w)]
    for fact, wording in rng.sample(cases, min(each, len(cases))):
        first = _asked(relation, rng.choice(relation.facts), rng)
        yield Question([*first, user(wording.format(**fact.slots))], fact.answer, "follow-up")
    if relation.group and relation.pronouns:
        others = [r for r in dialogues.RELATIONS if r.group == relation.group and r is not relation]
        about = [(f, w) for f in relation.facts for w in relation.pronouns if relation.held_out(f, w)]
        for fact, wording in rng.sample(about, min(each, len(about))):
            other = rng.choice([r for r in others if fact.slots["s"] in r.by_subject])
            first = _asked(other, other.by_subject[fact.slots["s"]], rng)
            yield Question([*first, user(wording)], fact.answer, "follow-up")


def _asked(relation: Relation, fact: Fact, rng: random.Random) -> list[Message]:
    question = rng.choice(relation.wordings).format(**fact.slots)
    return [user(question), assistant(fact.answer)]
