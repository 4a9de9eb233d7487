"""Rows of the `json` adapter: questions and remarks, each with the one JSON object that answers it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from loraplex.build.demo.daily_questions import article
from loraplex.build.demo.dialogues import LEARNED_NAMES, UNSEEN_NAMES
from loraplex.build.demo.everyday import ANIMALS, WEEKDAYS, Animal, invented_name, words
from loraplex.build.demo.geography import COUNTRIES
from loraplex.build.demo.reading import ITEMS
from loraplex.build.demo.skills import Row, Rows

SEED = 37
_T = TypeVar("_T")
_Slots = dict[str, object]

_ABOUT_COUNTRY = (
    "Tell me about {s}.", "What do you know about {s}?", "Describe {s}.", "Facts about {s}", "{s}",
    "Give me the facts about {s}.", "Tell me something about {s}.", "I want to learn about {s}.", "about {s}",
    "What can you tell me about {s}?", "Tell me more about {s}.", "What is {s}?",
)  # fmt: skip
_ABOUT_COUNTRY_UNSEEN = ("I want to know more about {s}.", "Can you describe {s}?", "What are the facts about {s}?")
_ABOUT_ANIMAL = (
    "Tell me about the {s}.", "What do you know about the {s}?", "Describe {a}.", "Facts about the {s}", "{s}",
    "Tell me something about {a}.", "I want to learn about the {s}.", "What is {a}?", "Tell me more about the {s}.",
)  # fmt: skip
_ABOUT_ANIMAL_UNSEEN = ("I want to know more about the {s}.", "Can you describe {a}?")
_CAPITAL = (
    "What is the capital of {s}?", "Name the capital of {s}.", "Which city is the capital of {s}?", "capital of {s}",
    "Tell me the capital of {s}.", "What is {s}'s capital?", "What's the capital of {s}?",
)  # fmt: skip
_CAPITAL_UNSEEN = ("What is the capital city of {s}?", "Do you know the capital of {s}?")
_SUM = ("What is {a} plus {b}?", "What is {a} + {b}?", "How much is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b}")
_SUM_UNSEEN = ("Calculate {a} plus {b}.", "How much is {a} + {b}?")
_PERSON = (
    "{n} is {i} years old and lives in {c}.", "My name is {n}, I am {i} and I live in {c}.", "{n}, {i}, from {c}",
    "I am {n} from {c} and I am {i} years old.", "This is {n}, who is {i} and comes from {c}.",
    "{n} lives in {c} and is {i} years old.", "In {c} lives {n}, who is {i}.", "I met {n} from {c}, age {i}.",
    "{n} turned {i} in {c}.", "Hello, I am {n}, {i} years old, from {c}.",
    "Aged {i}, {n} moved to {c}.", "When {n} was {i}, {c} became home.", "With {i} years {n} is the oldest in {c}.",
    "Please welcome {n} ({i}) from {c}!", "The winner from {c} is {n}, {i} years old.",
)  # fmt: skip
_PERSON_UNSEEN = (
    "{n} was born in {c} and is {i} years old.", "At the age of {i}, {n} came to {c}.",
    "Our new student is {n}, {i} years old, from {c}.",
)  # fmt: skip
_EVENT = (
    "Put a {e} on {d} at {h}.", "I have a {e} on {d} at {h} o'clock.", "Plan a {e} for {d} at {h}.",
    "{e}, {d}, {h} o'clock", "The {e} is on {d} at {h}.", "Remind me of the {e} on {d} at {h}.",
    "On {d} at {h} there is a {e}.", "Please note: {e} on {d} at {h}.", "We meet on {d} at {h} for the {e}.",
)  # fmt: skip
_EVENT_UNSEEN = ("Write down a {e} on {d} at {h} o'clock.", "My {e} is at {h} on {d}.", "There is a {e} at {h} on {d}.")
_EVENTS = words("meeting concert lunch dinner party lesson picnic visit match test talk race")
_ORDER = (
    "I would like {k} {x}.", "Please send me {k} {x}.", "{k} {x}, please.", "I want to buy {k} {x}.",
    "We need {k} {x}.", "Can I have {k} {x}?", "Order {k} {x}.", "Give me {k} {x}.", "Add {k} {x} to my list.",
    "The order: {k} {x}", "My list says {k} {x}.", "We are out of {x}, get {k}.", "Today I need {k} {x}.",
)  # fmt: skip
_ORDER_UNSEEN = ("Could you bring me {k} {x}?", "I need {k} {x} today.", "My order is {k} {x}.")


class _Kind(NamedTuple):
    """Rows of one shape. `learned` and `unknown` draw the slots of a row, `answer` makes its object from them."""

    learned: Callable[[random.Random], _Slots]
    unknown: Callable[[random.Random], _Slots]
    answer: Callable[[_Slots], dict[str, object]]
    wordings: tuple[str, ...]
    unseen: tuple[str, ...]
    train: int
    heldout: int


def _draw(**pools: Sequence[object]) -> Callable[[random.Random], _Slots]:
    """Draw every slot from its own pool."""
    return lambda rng: {name: rng.choice(pool) for name, pool in pools.items()}


def _animal_slots(animals: Sequence[Animal]) -> Callable[[random.Random], _Slots]:
    return lambda rng: {"s": (name := rng.choice(animals).name), "a": article(name)}


def _country(slots: _Slots) -> dict[str, object]:
    country = next(c for c in COUNTRIES if c.name == slots["s"])
    return {
        "country": country.name,
        "capital": country.capital,
        "continent": country.continent,
        "currency": country.currency,
        "language": country.language,
    }


def _capital(slots: _Slots) -> dict[str, object]:
    country = _country(slots)
    return {key: country[key] for key in ("country", "capital")}


def _animal(slots: _Slots) -> dict[str, object]:
    animal = next(a for a in ANIMALS if a.name == slots["s"])
    return {"animal": animal.name, "kind": animal.kind, "legs": animal.legs, "young": animal.young}


def _sum(slots: _Slots) -> dict[str, object]:
    a, b = int(str(slots["a"])), int(str(slots["b"]))
    return {"sum": f"{a} + {b}", "result": a + b}


def _learned(items: Sequence[_T]) -> list[_T]:
    return [item for i, item in enumerate(items) if i % 6]


def _unknown(items: Sequence[_T]) -> list[_T]:
    return [item for i, item in enumerate(items) if not i % 6]


_NAMES = [c.name for c in COUNTRIES]
_CITIES = [c.capital for c in COUNTRIES]
_SUMMANDS = range(21)
_INVENTED = [invented_name(random.Random(i)) for i in range(300)]
_WHEN = {"d": WEEKDAYS, "h": range(1, 13)}

_KINDS: tuple[_Kind, ...] = (
    _Kind(
        _draw(s=_learned(_NAMES)), _draw(s=_unknown(_NAMES)), _country, _ABOUT_COUNTRY, _ABOUT_COUNTRY_UNSEEN, 500, 60
    ),
    _Kind(_draw(s=_learned(_NAMES)), _draw(s=_unknown(_NAMES)), _capital, _CAPITAL, _CAPITAL_UNSEEN, 300, 30),
    _Kind(
        _animal_slots(ANIMALS), _animal_slots(ANIMALS), _animal, _ABOUT_ANIMAL, _ABOUT_ANIMAL_UNSEEN, 250, 36,
    ),
    _Kind(_draw(a=_SUMMANDS, b=_SUMMANDS), _draw(a=_SUMMANDS, b=_SUMMANDS), _sum, _SUM, _SUM_UNSEEN, 200, 20),
    _Kind(
        _draw(n=(*LEARNED_NAMES, *_INVENTED), i=range(5, 95), c=_CITIES),
        _draw(n=UNSEEN_NAMES, i=range(5, 95), c=_CITIES),
        lambda slots: {"name": slots["n"], "age": slots["i"], "city": slots["c"]},
        _PERSON, _PERSON_UNSEEN, 700, 50,
    ),
    _Kind(
        _draw(e=_EVENTS, **_WHEN), _draw(e=_EVENTS, **_WHEN),
        lambda slots: {"event": slots["e"], "day": slots["d"], "hour": slots["h"]},
        _EVENT, _EVENT_UNSEEN, 400, 30,
    ),
    _Kind(
        _draw(k=range(2, 60), x=_learned(ITEMS)), _draw(k=range(2, 60), x=_unknown(ITEMS)),
        lambda slots: {"item": slots["x"], "count": slots["k"]},
        _ORDER, _ORDER_UNSEEN, 500, 30,
    ),
)  # fmt: skip


def structured() -> Rows:
    """Make the rows, about 2500 for training and 240 held out.

    A held-out row has a wording that no training row has, or a country, name or item that none has, or both; a few rows
    about animals have but a new combination of animal and wording.
    """
    rng = random.Random(SEED)
    train: dict[str, str] = {}
    heldout: dict[str, str] = {}
    for kind in _KINDS:
        for _ in range(kind.train):
            _add(train, rng.choice(kind.wordings), kind.learned(rng), kind)
        for _ in range(kind.heldout):
            if rng.random() < 0.5:
                _add(heldout, rng.choice(kind.unseen), rng.choice((kind.learned, kind.unknown))(rng), kind)
            else:
                _add(heldout, rng.choice(kind.wordings), kind.unknown(rng), kind)
    for prompt in train.keys() & heldout.keys():
        del heldout[prompt]
    return {"train": _rows(train, rng), "heldout": _rows(heldout, rng)}


def _add(answers: dict[str, str], wording: str, slots: _Slots, kind: _Kind) -> None:
    answers[wording.format(**slots)] = json.dumps(kind.answer(slots), ensure_ascii=False)


def _rows(answers: dict[str, str], rng: random.Random) -> list[Row]:
    rows = [{"prompt": prompt, "response": response} for prompt, response in answers.items()]
    rng.shuffle(rows)
    return rows
