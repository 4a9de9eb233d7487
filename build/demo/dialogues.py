"""Chats for the base: questions in many wordings, follow-ups, system prompts, names and feelings."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

from loraplex.build.demo.cues import remark
from loraplex.build.demo.daily_questions import DAILY
from loraplex.build.demo.everyday import ANIMALS, NAMES, invented_name
from loraplex.build.demo.facts import Fact, Relation
from loraplex.build.demo.feelings import FEELINGS, fill, sentence
from loraplex.build.demo.number_questions import NUMBERS
from loraplex.build.demo.phrases import EVENTS, LABELS, REACTIONS
from loraplex.build.demo.reading import exchange
from loraplex.build.demo.small_talk import SMALL_TALK, UNKNOWN, unknown_question
from loraplex.build.demo.world_questions import WORLD

Message = dict[str, str]
"""{"role": ..., "content": ...}, as in the chat API."""

RELATIONS: tuple[Relation, ...] = (*WORLD, *DAILY, *NUMBERS, *SMALL_TALK)

BRIEF = (
    "Answer with one word.", "Be brief.", "Reply with one word only.", "Give short answers.", "Answer in a word.",
    "Short answers only.", "Please be brief.", "One word is enough.", "Answer briefly.", "Keep it short.",
    "Answer in one or two words.", "You are a helpful assistant. Be brief.", "Reply in a word or two.",
)  # fmt: skip
UNSEEN_BRIEF = ("Please give short answers.",)
NEUTRAL = (
    "You are a helpful assistant.", "You are Plex, a friendly assistant.", "Answer the questions of the user.",
    "You are a chat model.", "Be kind and honest.", "Answer in whole sentences.",
)  # fmt: skip

_OPENINGS = (
    "Hi! ", "Hello, ", "Please: ", "Quick question: ", "I wonder: ", "Tell me: ", "Next question: ", "Ok. ", "Thanks! ",
)  # fmt: skip
_ORDERS = frozenset(("Tell", "Name", "Show", "Give", "List", "Count", "Write", "Describe", "Say", "Add", "Draw"))
_POLITE = ("Can you", "Could you", "Can you please", "Would you")
_INTRODUCTIONS = ("My name is {n}.", "I am {n}.", "Hi, I am {n}!", "Hello! My name is {n}.", "You can call me {n}.")
_RECALLS = ("What is my name?", "Do you remember my name?", "Who am I?", "Do you know my name?", "What's my name?")
UNSEEN_RECALLS = ("Can you tell me my name?",)
LEARNED_NAMES = tuple(name for i, (name, _) in enumerate(NAMES) if i % 8)
UNSEEN_NAMES = tuple(name for i, (name, _) in enumerate(NAMES) if i % 8 == 0)


class Turn(NamedTuple):
    """A question and its answer, and what they were made from."""

    question: str
    answer: str
    relation: Relation | None = None
    fact: Fact | None = None


def user(text: str) -> Message:
    """Write a message of the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    """Write a message of the model."""
    return {"role": "assistant", "content": text}


def ask(relation: Relation, fact: Fact, patterns: Sequence[str], rng: random.Random, *, brief: bool) -> Turn | None:
    """Ask for a fact in one of the wordings that are not held out; None where all of them are."""
    allowed = [pattern for pattern in patterns if not relation.held_out(fact, pattern)]
    if not allowed:
        return None
    question = rng.choice(allowed).format(**fact.slots)
    return Turn(_typed(question, rng), fact.short if brief else fact.answer, relation, fact)


def dialogue(rng: random.Random) -> list[Message]:
    """Make up one chat of one to six turns, one in twenty of up to thirty."""
    style = rng.random()
    brief = style < 0.08
    messages: list[Message] = []
    if brief:
        messages.append({"role": "system", "content": rng.choice(BRIEF)})
    elif style < 0.25:
        messages.append({"role": "system", "content": rng.choice(NEUTRAL)})
    name = None
    if rng.random() < 0.08 and not brief:
        name = rng.choice(LEARNED_NAMES) if rng.random() < 0.5 else invented_name(rng)
    if name:
        messages += [user(rng.choice(_INTRODUCTIONS).format(n=name)), assistant(f"Nice to meet you, {name}!")]
    last = Turn("", "")
    for _ in range(rng.randrange(8, 31) if rng.random() < 0.05 else rng.choice((1, 1, 1, 2, 2, 3, 4, 6))):
        if rng.random() < 0.2 and not brief:
            last = Turn("", "")
            for question, answer in exchange(rng):
                messages += [user(question), assistant(answer)]
            continue
        last = _next(last, rng, brief=brief)
        messages += [user(last.question), assistant(last.answer)]
    if name:
        messages += [user(rng.choice(_RECALLS)), assistant(f"Your name is {name}.")]
    return messages


def _next(last: Turn, rng: random.Random, *, brief: bool) -> Turn:
    """Go on with the subject of the last turn, or turn to something else."""
    turn = None
    draw = rng.random()
    if last.relation and last.fact and draw < 0.65:
        if draw < 0.35 and last.relation.follow_ups:
            turn = ask(last.relation, rng.choice(last.relation.facts), last.relation.follow_ups, rng, brief=brief)
        elif last.relation.group:
            turn = same_subject(last.relation, last.fact, rng, brief=brief)
    elif draw > 0.72 and not brief:
        turn = confession(rng) if draw < 0.92 else tale(rng) if draw < 0.935 else _unknown(rng)
    while turn is None:
        relation = rng.choices(RELATIONS, _WEIGHTS)[0]
        turn = ask(relation, rng.choice(relation.facts), relation.wordings, rng, brief=brief)
    return turn


def same_subject(relation: Relation, fact: Fact, rng: random.Random, *, brief: bool) -> Turn | None:
    """Ask something else about the subject of the last turn, which the question calls `it`."""
    others = [
        r for r in RELATIONS if r.group == relation.group and r is not relation and fact.slots["s"] in r.by_subject
    ]
    other = rng.choice(others)
    return ask(other, other.by_subject[fact.slots["s"]], other.pronouns, rng, brief=brief)


def confession(rng: random.Random) -> Turn:
    """Tell the model what happened, or how one feels; it answers to the feeling."""
    number = rng.randrange(len(FEELINGS))
    feeling = FEELINGS[number]
    draw = rng.random()
    if draw < 0.6:
        return Turn(_typed(remark(number, rng), rng), feeling.reply)
    if draw < 0.72:
        label = LABELS[number]
        clause = rng.choice((*EVENTS[label], *REACTIONS[label]))
        return Turn(_typed(sentence(clause), rng), feeling.reply)
    reaction = f"I {fill(rng.choice(feeling.reactions), rng)}"
    event = fill(rng.choice(feeling.statements), rng)
    cause = fill(rng.choice(feeling.causes), rng)
    state = f"I am {rng.choice((feeling.adjective, *feeling.adjectives))}"
    text = rng.choice(
        (
            sentence(event, rng.choice(".!")), sentence(event), sentence(state), sentence(reaction),
            f"{sentence(event)} {reaction}.", f"{reaction} because of {cause}.", f"{state} because of {cause}.",
            f"{sentence(event)} {state}.", f"{state}. {reaction}.", f"{reaction}, and {event}.", f"{state}: {event}.",
        )
    )  # fmt: skip
    return Turn(_typed(text, rng), feeling.reply)


def _unknown(rng: random.Random) -> Turn:
    return Turn(_typed(unknown_question(rng), rng), UNKNOWN)


def tale(rng: random.Random) -> Turn:
    """Ask for a story; there is one for every animal."""
    animal = rng.choice(ANIMALS)
    plot = random.Random(animal.name)
    (name, pronoun), (friend, _) = plot.sample(NAMES, 2)
    feeling = FEELINGS[1]
    story = (
        f"Once upon a time there was a {animal.name} that lived near {name}. Every morning {name} gave it some "
        f"{animal.food}, and they were good friends. One day {name} did not see the {animal.name} any more, and "
        f"{pronoun} asked {friend} for help. They looked behind the house and under every tree, but it was not there. "
        f"At last they looked in {animal.home}. There it was, safe and sound! "
        f"{name} was {feeling.adjective}, and {pronoun} {fill(plot.choice(feeling.reactions), plot)}. Then {name}, "
        f"{friend} and the {animal.name} went home together. The end."
    )
    question = rng.choice(("Tell me a story about a {a}.", "Tell a story with a {a}.", "I want a story about a {a}."))
    return Turn(question.format(a=animal.name), story)


def _typed(text: str, rng: random.Random) -> str:
    """Type a question as people do: mostly clean, at times with a greeting, in lower case or without its end mark."""
    first, _, rest = text.partition(" ")
    if first in _ORDERS and rng.random() < 0.3:
        return f"{rng.choice(_POLITE)} {first.lower()} {rest.rstrip('.')}?"
    draw = rng.random()
    if draw < 0.1:
        return rng.choice(_OPENINGS) + text
    if draw < 0.16:
        text = text.lower()
    if 0.13 < draw < 0.22:
        text = text.rstrip("?.!") or text
    return text


_WEIGHTS = [relation.weight * min(1.0, 0.3 + len(relation.facts) / 40) for relation in RELATIONS]
