"""Questions about animals, things, the calendar and daily life."""

from __future__ import annotations

import random

from loraplex.build.demo.everyday import (
    ANIMALS,
    COLOURS,
    JOBS,
    MONTHS,
    OPPOSITES,
    PLACES,
    PLANETS,
    WEEKDAYS,
    Animal,
)
from loraplex.build.demo.facts import ABOUT, Fact, Relation, fact
from loraplex.build.demo.feelings import FEELINGS, fill

_NUMERALS = {0: "no", 2: "two", 4: "four", 6: "six"}


def article(noun: str) -> str:
    """Put `a` or `an` before a noun."""
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def profile(animal: Animal) -> str:
    """What the base says when it is asked to tell about an animal: about eighty tokens."""
    return (
        f"The {animal.name} is {article(animal.kind)}. It has {_NUMERALS[animal.legs]} legs and it {animal.trait}. "
        f"It lives in {animal.home}, and it eats {animal.food}. When {article(animal.name)} wants to be heard, it "
        f"{animal.sound}. A young {animal.name} is called {article(animal.young)}. Here is a picture: {animal.emoji}"
    )


def _animals(answer: str, short: str) -> tuple[Fact, ...]:
    """One fact for each animal; the patterns may use the animal's fields and {a}, {young_a}, {kind_a} and {numeral}."""
    facts = []
    for animal in ANIMALS:
        words = {
            **vars(animal),
            "a": article(animal.name),
            "young_a": article(animal.young),
            "kind_a": article(animal.kind),
            "numeral": _NUMERALS[animal.legs],
        }
        facts.append(fact(answer.format(**words), short.format(**words), s=animal.name, a=article(animal.name)))
    return tuple(facts)


def _feelings() -> tuple[Fact, ...]:
    rng = random.Random(11)
    causes = [(fill(cause, rng), feeling.adjective) for feeling in FEELINGS for cause in feeling.causes]
    return tuple(fact(f"People feel {adjective} about {cause}.", adjective, s=cause) for cause, adjective in causes)


_MONTHS = [name for name, _ in MONTHS]
_ANIMAL_FOLLOW_UPS = ("And {a}?", "What about {a}?", "How about {a}?", "And the {s}?", "What about the {s}?")

DAILY: tuple[Relation, ...] = (
    Relation(
        "kind",
        _animals("{a} is {kind_a}.", "{kind}"),
        (
            "What kind of animal is {a}?", "What is {a}?", "Is {a} a mammal or a bird?",
            "What sort of animal is the {s}?", "Tell me what kind of animal {a} is.",
        ),
        ("Do you know what kind of animal {a} is?",),
        _ANIMAL_FOLLOW_UPS,
        ("What kind of animal is it?",),
        ("The {s} is one kind of {short}.",),
        "animal",
    ),
    Relation(
        "legs",
        _animals("{a} has {numeral} legs.", "{legs}"),
        (
            "How many legs does {a} have?", "How many legs has {a}?", "Count the legs of {a}.",
            "How many legs are on {a}?", "Tell me how many legs {a} has.",
        ),
        ("Do you know how many legs {a} has?",),
        _ANIMAL_FOLLOW_UPS,
        ("How many legs does it have?",),
        ("The number of legs of {a} is {short}.",),
        "animal",
    ),
    Relation(
        "young",
        _animals("A young {name} is called {young_a}.", "{young}"),
        (
            "What is a young {s} called?", "What do you call a young {s}?", "What is a baby {s} called?",
            "What is the young of {a} called?", "What do people call a baby {s}?", "Name the young of {a}.",
            "Tell me what a young {s} is called.",
        ),
        ("What is the name for a young {s}?", "Do you know what a baby {s} is called?"),
        _ANIMAL_FOLLOW_UPS,
        ("What are its young called?", "And its young?"),
        ("The young of {a} is called {short}.", "The baby {s}, the {short}, stays with its mother."),
        "animal",
    ),
    Relation(
        "sound",
        _animals("{a} {sound}.", "{sound}"),
        (
            "What sound does {a} make?", "How does {a} sound?", "What noise does {a} make?", "What does {a} say?",
            "Which sound does {a} make?", "What is the sound of {a}?", "Tell me what sound {a} makes.",
        ),
        ("Do you know what sound {a} makes?", "Which noise does {a} make?"),
        _ANIMAL_FOLLOW_UPS,
        ("What sound does it make?", "And what does it say?"),
        ("At night {a} {short}.", "The {s} {short} when it sees you."),
        "animal",
    ),
    Relation(
        "food",
        _animals("{a} eats {food}.", "{food}"),
        ("What does {a} eat?", "What do you feed {a}?", "What is the food of {a}?", "What does {a} live on?",
         "Tell me what {a} eats."),
        ("Do you know what {a} eats?", "What food does {a} eat?"),
        _ANIMAL_FOLLOW_UPS,
        ("What does it eat?", "And what does it eat?"),
        ("The {s} likes to eat {short}.", "The food of the {s} is {short}."),
        "animal",
    ),
    Relation(
        "home",
        _animals("{a} lives in {home}.", "{home}"),
        ("Where does {a} live?", "Where can I find {a}?", "Where is the home of {a}?", "In what place does {a} live?",
         "Tell me where {a} lives."),
        ("Do you know where {a} lives?", "Where do you find {a}?"),
        _ANIMAL_FOLLOW_UPS,
        ("Where does it live?", "And where does it live?"),
        ("The home of the {s} is {short}.", "Look for the {s} in {short}."),
        "animal",
    ),
    Relation(
        "emoji",
        _animals("{emoji}", "{emoji}"),
        ("Show me {a}.", "What is the emoji for {a}?", "Give me a picture of {a}.", "Draw {a}.", "the emoji for {a}",
         "Can I see {a}?"),
        ("Can you show me {a}?", "Which emoji is there for {a}?"),
        _ANIMAL_FOLLOW_UPS,
        ("Show me one.", "What does it look like?"),
        ("This is {a}: {short}",),
        "animal",
    ),
    Relation(
        "profile",
        tuple(fact(profile(x), f"{article(x.kind)}", s=x.name, a=article(x.name)) for x in ANIMALS),
        (
            "Tell me about the {s}.", "Tell me something about {a}.", "What do you know about the {s}?",
            "Describe {a}.", "Tell me more about the {s}.", "I want to learn about the {s}.",
        ),
        ("What can you tell me about the {s}?", "I want to know more about the {s}."),
        _ANIMAL_FOLLOW_UPS,
        ("Tell me more about it.", "What else do you know about it?"),
        group="animal",
        weight=1.5,
    ),
    Relation(
        "colour",
        tuple(fact(f"{thing} is {colour}.", colour, s=thing) for thing, colour in COLOURS.items()),
        ("What colour is {s}?", "Which colour does {s} have?", "What color is {s}?", "Tell me the colour of {s}.",
         "Tell me what colour {s} is."),
        ("What is the colour of {s}?", "Do you know what colour {s} is?"),
        ABOUT,
        (),
        ("The colour of {s} is {short}.", "{short} is the colour of {s}."),
    ),
    Relation(
        "opposite",
        tuple(fact(f"The opposite of {a} is {b}.", b, s=a) for pair in OPPOSITES for a, b in (pair, pair[::-1])),
        ("What is the opposite of {s}?", "Name the opposite of {s}.", "What's the opposite of {s}?", "opposite of {s}",
         "Tell me the opposite of {s}.", "Which word is the opposite of {s}?"),
        ("Do you know the opposite of {s}?", "What word is the opposite of {s}?"),
        (*ABOUT, "And of {s}?"),
        (),
        ("{s} is not {short}: they are opposites.", "If it is not {s}, it may be {short}."),
    ),
    Relation(
        "next_month",
        tuple(fact(f"{b} comes after {a}.", b, s=a) for a, b in zip(_MONTHS, _MONTHS[1:] + _MONTHS[:1], strict=True)),
        ("Which month comes after {s}?", "What month comes after {s}?", "Which month follows {s}?",
         "What is the month after {s}?", "What comes after {s}?"),
        ("Do you know which month comes after {s}?",),
        ABOUT,
    ),
    Relation(
        "last_month",
        tuple(fact(f"{a} comes before {b}.", a, s=b) for a, b in zip(_MONTHS, _MONTHS[1:] + _MONTHS[:1], strict=True)),
        ("Which month comes before {s}?", "What month is before {s}?", "What is the month before {s}?",
         "What comes before {s}?"),
        ("Do you know which month comes before {s}?",),
        ABOUT,
    ),
    Relation(
        "month_days",
        tuple(fact(f"{name} has {days} days.", str(days), s=name) for name, days in MONTHS),
        ("How many days does {s} have?", "How long is {s}?", "How many days are in {s}?", "How many days has {s}?"),
        ("How many days are there in {s}?",),
        ABOUT,
        (),
        ("There are {short} days in {s}.",),
    ),
    Relation(
        "next_day",
        tuple(
            fact(f"{b} comes after {a}.", b, s=a) for a, b in zip(WEEKDAYS, WEEKDAYS[1:] + WEEKDAYS[:1], strict=True)
        ),
        ("Which day comes after {s}?", "What day comes after {s}?", "Which day follows {s}?", "What comes after {s}?"),
        ("Do you know which day comes after {s}?",),
        ABOUT,
    ),
    Relation(
        "planet",
        tuple(fact(f"Planet number {n} from the Sun is {p}.", p, s=str(n)) for n, p in enumerate(PLANETS, 1)),
        ("Which planet is number {s} from the Sun?", "What is planet number {s}?", "Name planet number {s}.",
         "Which planet has the number {s}?"),
        ("What is the name of planet number {s}?",),
        ("And number {s}?", "What about number {s}?"),
        (),
        ("{short} is planet number {s}.",),
    ),
    Relation(
        "job",
        tuple(fact(f"{article(job)} {work}.", work, s=job, a=article(job)) for job, work in JOBS),
        (
            "What does {a} do?", "What is the work of {a}?", "What is {a}?", "Tell me what {a} does.",
            "What do you do as {a}?",
        ),
        ("Do you know what {a} does?",),
        ("And {a}?", "What about {a}?"),
        (),
        ("The {s} {short}.", "Every day the {s} {short}."),
    ),
    Relation(
        "worker",
        tuple(fact(f"{article(job)} {work}.", article(job), s=work) for job, work in JOBS),
        (
            "Who {s}?", "Tell me who {s}.", "What do you call someone who {s}?", "Which person {s}?",
            "Who is it that {s}?",
        ),
        ("Do you know who {s}?",),
        ("And who {s}?",),
    ),
    Relation(
        "place",
        tuple(
            fact(f"{article(name)} is a {place}.", f"a {place}", s=name, a=article(name))
            for name, use in PLACES
            for place in (f"place where people {use}",)
        ),
        (
            "What is {a}?", "What is {a} for?", "What do people do in {a}?", "Tell me what {a} is.",
            "Explain what {a} is.",
        ),
        ("Do you know what {a} is?",),
        ("And {a}?", "What about {a}?"),
        (),
        ("{a} is {short}.", "Let us go to the {s}!", "The {s} is old and beautiful."),
    ),
    Relation(
        "feeling",
        _feelings(),
        ("How do people feel about {s}?", "How does {s} make people feel?", "What do people feel about {s}?",
         "Tell me how people feel about {s}."),
        ("Do you know how people feel about {s}?",),
        ABOUT,
        (),
        ("People are {short} because of {s}.",),
        weight=2.0,
    ),
)  # fmt: skip
