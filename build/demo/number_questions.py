"""Questions whose answers are worked out: small sums, comparisons, counting, numbers in words."""

from __future__ import annotations

import random

from loraplex.build.demo.everyday import number_word
from loraplex.build.demo.facts import Fact, Relation, fact


def _larger() -> tuple[Fact, ...]:
    rng = random.Random(7)
    pairs = {(a, b) for a, b in ((rng.randrange(1, 100), rng.randrange(1, 100)) for _ in range(3000)) if a != b}
    return tuple(
        fact(f"{max(pair)} is larger than {min(pair)}.", str(max(pair)), a=str(pair[0]), b=str(pair[1]))
        for pair in sorted(pairs)
    )


def _counts() -> tuple[Fact, ...]:
    spans = [(a, b) for a in range(1, 31) for b in range(a + 2, min(a + 25, 51))]
    return tuple(
        fact(", ".join(map(str, range(a, b + 1))) + ".", f"{b - a + 1} numbers", a=str(a), b=str(b)) for a, b in spans
    )


NUMBERS: tuple[Relation, ...] = (
    Relation(
        "add",
        tuple(
            fact(f"{a} plus {b} is {a + b}.", str(a + b), a=str(a), b=str(b)) for a in range(21) for b in range(21)
        ),
        ("What is {a} plus {b}?", "What is {a} + {b}?", "How much is {a} plus {b}?", "Add {a} and {b}.", "{a} + {b}",
         "What's {a} + {b}?", "Calculate {a} plus {b}.", "{a} plus {b}", "How much is {a} + {b}?"),
        ("Can you add {a} and {b}?", "Tell me what {a} plus {b} is."),
        ("And {a} plus {b}?", "What about {a} + {b}?"),
        (),
        ("{a} + {b} = {short}", "{a} and {b} make {short}."),
        weight=5.0,
        computed=True,
    ),
    Relation(
        "subtract",
        tuple(
            fact(f"{a} minus {b} is {a - b}.", str(a - b), a=str(a), b=str(b)) for a in range(21) for b in range(a + 1)
        ),
        ("What is {a} minus {b}?", "What is {a} - {b}?", "How much is {a} minus {b}?", "Take {b} from {a}.",
         "{a} - {b}", "Subtract {b} from {a}.", "Calculate {a} minus {b}.", "{a} minus {b}"),
        ("Can you take {b} from {a}?", "Tell me what {a} minus {b} is."),
        ("And {a} minus {b}?", "What about {a} - {b}?"),
        (),
        ("{a} - {b} = {short}",),
        weight=3.5,
        computed=True,
    ),
    Relation(
        "multiply",
        tuple(
            fact(f"{a} times {b} is {a * b}.", str(a * b), a=str(a), b=str(b)) for a in range(11) for b in range(11)
        ),
        ("What is {a} times {b}?", "What is {a} * {b}?", "How much is {a} times {b}?", "Multiply {a} by {b}.",
         "{a} times {b}", "{a} * {b}", "Calculate {a} times {b}."),
        ("Can you multiply {a} by {b}?", "Tell me what {a} times {b} is."),
        ("And {a} times {b}?",),
        (),
        ("{a} * {b} = {short}",),
    ),
    Relation(
        "words",
        tuple(fact(f"{n} is written {number_word(n)}.", number_word(n), s=str(n)) for n in range(100)),
        ("How do you write {s} in words?", "Write {s} in words.", "What is {s} in words?", "{s} in words"),
        ("Can you write {s} in words?",),
        ("And {s}?", "What about {s}?"),
        (),
        ("The number {s} is called {short}.",),
    ),
    Relation(
        "larger",
        _larger(),
        ("Which is larger, {a} or {b}?", "Which number is larger, {a} or {b}?", "What is more, {a} or {b}?",
         "Is {a} or {b} larger?", "Which is bigger, {a} or {b}?"),
        ("Which number is bigger, {a} or {b}?",),
        ("And {a} or {b}?",),
        weight=1.5,
        computed=True,
    ),
    Relation(
        "count",
        _counts(),
        (
            "Count from {a} to {b}.", "Count up from {a} to {b}.", "Write the numbers from {a} to {b}.",
            "Can you count from {a} to {b}?",
        ),
        ("Please count up for me from {a} to {b}.",),
        ("And from {a} to {b}?",),
        (),
        (),
        weight=1.5,
        computed=True,
    ),
)  # fmt: skip
