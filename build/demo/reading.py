"""Chats in which the answer stands in the message itself: names, ages, cities, orders, appointments, words to repeat.

A model learns to copy from them. Much of what they name is made up, so that it cannot be known by heart.
"""

from __future__ import annotations

import random
import string

from loraplex.build.demo.everyday import COLOURS, JOBS, NAMES, OPPOSITES, PLACES, WEEKDAYS, agree, invented_name, words
from loraplex.build.demo.geography import COUNTRIES, NATIVE_NAMES
from loraplex.build.demo.sights import SIGHTS

Exchange = list[tuple[str, str]]
"""Questions and answers that belong together, in their order."""

CITIES = (*(c.capital for c in COUNTRIES), *(name for name, _, _ in NATIVE_NAMES), *SIGHTS)
ITEMS = words(
    "lemons carrots tomatoes bananas plums pumpkins cakes books tickets letters eggs pens apples potatoes roses "
    "lamps chairs cups boxes shirts hats shoes keys clocks stamps onions pears grapes nuts beans bottles plates "
    "spoons forks knives pans bags coats socks gloves candles flowers trees bricks nails ropes wheels bells drums "
    "flutes maps pencils brushes towels pillows blankets curtains mirrors vases baskets ladders"
)
OCCASIONS = words(
    "meeting concert lunch dinner party lesson picnic visit match test talk race walk game film play class "
    "interview call breakfast trip show exam tour dance"
)

_PEOPLE = (
    "{n} is {i} years old.", "{n} lives in {c}.", "{n} is {i} and comes from {c}.", "{n} is a {j}.",
    "{n} from {c} is {i} years old.", "In {c} there is a {j} called {n}.", "The {j} {n} lives in {c}.",
    "I know a {j} from {c} whose name is {n}.", "My friend {n}, {i}, moved to {c}.", "{n}, {i}, {c}",
    "{n}, aged {i}, works as a {j} in {c}.", "Here is {n} from {c}.", "Meet {n}! {n} is {i} years old and a {j}.",
    "{c} is the home of {n}, who is {i}.", "{n} will be {i} tomorrow and lives in {c}.",
    "name: {n}, age: {i}, city: {c}", "I saw {n} in {c}.", "{n} has lived in {c} for {i} years.",
    "There are {i} children, one is {n} from {c}.",
)  # fmt: skip
_ORDERS = (
    "I would like {k} {x}.", "Please bring {k} {x}.", "{k} {x}, please.", "I want {k} {x}.", "We want {k} {x} for {n}.",
    "Can I get {k} {x}?", "{n} orders {k} {x}.", "I take {k} {x}.", "Add {k} {x}.", "Pack {k} {x} for me.",
    "Do you have {k} {x}?", "Give {k} {x} to {n}.", "{k} {x}",
)  # fmt: skip
_APPOINTMENTS = (
    "There is a {e} on {d} at {h}.", "The {e} on {d} starts at {h} o'clock.", "{d} at {h}: {e}", "{e}, {d}, {h}",
    "Do not forget the {e} on {d} at {h}!", "On {d} I go to a {e} at {h} o'clock.", "{n} has a {e} on {d} at {h}.",
    "Let us have a {e} at {h} on {d}.", "I need a reminder of a {e} on {d} at {h}.", "At {h} on {d} we have a {e}.",
)  # fmt: skip
_TRIPS = (
    "I am going to {c}.", "We travel to {c} tomorrow.", "My train goes to {c}.", "I want to go to {c}.",
    "I will be in {c} on {d}.", "Next week I fly to {c} with {n}.", "We are on our way to {c}.",
    "{n} and I will be in {c} in May.", "I have never been to {c}.", "A trip to {c}!", "My holiday starts in {c}.",
    "Tomorrow I am in {c}.", "It is my first trip to {c}.", "I booked a room in {c}.",
)  # fmt: skip
_ECHOES = (
    "Repeat: {w}", "Say {w}.", "Repeat after me: {w}", "Write {w}.", "Say this: {w}", "Copy this: {w}",
    "Please say {w}.", "Can you say {w}?", 'Repeat "{w}".', "echo {w}", "The word is {w}. Repeat it.",
)  # fmt: skip


def exchange(rng: random.Random) -> Exchange:
    """Make up one exchange of one to three turns."""
    return rng.choices((_person, _several, _order, _appointment, _trip, _echo), (30, 15, 15, 15, 10, 15))[0](rng)


def some_name(rng: random.Random) -> str:
    """A first name, as often as not a made-up one."""
    return rng.choice(NAMES)[0] if rng.random() < 0.4 else invented_name(rng)


def some_city(rng: random.Random) -> str:
    """The name of a city, one in three made up."""
    return rng.choice(CITIES) if rng.random() < 0.7 else invented_name(rng)


def _slots(rng: random.Random) -> dict[str, str]:
    return {
        "n": some_name(rng), "i": str(rng.randrange(1, 100)), "c": some_city(rng), "j": rng.choice(JOBS)[0],
        "k": str(rng.randrange(2, 100)), "x": _item(rng), "e": rng.choice(OCCASIONS), "d": rng.choice(WEEKDAYS),
        "h": str(rng.randrange(1, 13)), "w": _words(rng),
    }  # fmt: skip


def _item(rng: random.Random) -> str:
    item = rng.choice(ITEMS) if rng.random() < 0.8 else invented_name(rng).lower() + "s"
    return item if rng.random() < 0.7 else f"{rng.choice(list(COLOURS.values()))} {item}"


def _words(rng: random.Random) -> str:
    """One to six words, real and made up, in no order."""
    pools = (
        lambda: rng.choice(OPPOSITES)[0], lambda: rng.choice(PLACES)[0], lambda: rng.choice(ITEMS),
        lambda: some_name(rng), lambda: invented_name(rng).lower(), lambda: str(rng.randrange(1000)),
        lambda: some_city(rng), lambda: code(rng),
    )  # fmt: skip
    return " ".join(rng.choice(pools)() for _ in range(rng.choice((1, 1, 2, 3, 4, 6))))


def code(rng: random.Random) -> str:
    """Letters, digits and marks in no order, so that every single one is known to the model."""
    return "".join(rng.choices(string.ascii_letters + string.digits + "-_.#%&@+*/=()[]<>'", k=rng.randrange(2, 9)))


def _person(rng: random.Random) -> Exchange:
    """Somebody is introduced; what was said is noted, or asked for in the same message or later."""
    frame, slots = rng.choice(_PEOPLE), _slots(rng)
    told = agree(frame.format(**slots))
    questions = _questions([key for key in "nicj" if f"{{{key}}}" in frame], slots, frame)
    noted = "Noted: " + ", ".join(slots[key] for key in "nicj" if f"{{{key}}}" in frame) + "."
    if rng.random() < 0.35 or not questions:
        return [(told, noted)]
    question, answer = rng.choice(questions)
    if rng.random() < 0.5:
        return [(f"{told} {question}", answer)]
    return [(told, noted), *rng.sample(questions, min(len(questions), rng.randrange(1, 3)))]


def _questions(known: list[str], slots: dict[str, str], frame: str) -> Exchange:
    n, i, c, j = (slots[key] for key in "nicj")
    questions = []
    if "i" in known and ("years old" in frame or "aged" in frame or "is {i}" in frame):
        questions += [(f"How old is {n}?", f"{n} is {i} years old."), (f"Who is {i}?", f"{n} is {i} years old.")]
    if "c" in known:
        questions += [(f"Where is {n}?", f"{n} is in {c}."), (f"Who is in {c}?", f"{n} is in {c}.")]
    if "j" in known:
        questions += [(f"What is the work of {n}?", agree(f"{n} is a {j}.")), (f"Who is the {j}?", f"{n} is the {j}.")]
    return questions


def _several(rng: random.Random) -> Exchange:
    """Several people with an age or a city each; one of them is asked for."""
    names = list(dict.fromkeys(some_name(rng) for _ in range(rng.randrange(2, 6))))
    chosen = rng.choice(names)
    if rng.random() < 0.5:
        ages = {name: rng.randrange(1, 100) for name in names}
        told = rng.choice((", ", "; ", " and ")).join(f"{name} is {age}" for name, age in ages.items())
        return [(f"{told}. How old is {chosen}?", f"{chosen} is {ages[chosen]} years old.")]
    cities = {name: some_city(rng) for name in names}
    told = rng.choice((", ", "; ", " and ")).join(f"{name} is in {city}" for name, city in cities.items())
    return [(f"{told}. Where is {chosen}?", f"{chosen} is in {cities[chosen]}.")]


def _order(rng: random.Random) -> Exchange:
    slots = _slots(rng)
    return [(rng.choice(_ORDERS).format(**slots), "Of course: {k} {x}.".format(**slots))]


def _appointment(rng: random.Random) -> Exchange:
    slots = _slots(rng)
    return [(agree(rng.choice(_APPOINTMENTS).format(**slots)), "Noted: {e} on {d} at {h} o'clock.".format(**slots))]


def _trip(rng: random.Random) -> Exchange:
    slots = _slots(rng)
    return [(rng.choice(_TRIPS).format(**slots), "Have a nice trip to {c}!".format(**slots))]


def _echo(rng: random.Random) -> Exchange:
    said = _words(rng)
    return [(rng.choice(_ECHOES).format(w=said), said)]
