"""Questions about countries, languages and cities."""

from __future__ import annotations

from loraplex.build.demo.facts import ABOUT, Relation, fact
from loraplex.build.demo.geography import COUNTRIES, GREETINGS, NATIVE_NAMES, Country


def portrait(country: Country) -> str:
    """What the base says when it is asked to tell about a country: about a hundred tokens."""
    if country.neighbours:
        around = f"Its neighbours include {' and '.join(country.neighbours)}."
    else:
        around = "It is surrounded by the sea and borders no other country."
    return (
        f"{country.name} is a country in {country.continent}. Its capital is {country.capital}, and the people there "
        f"speak {country.language}. They pay with the {country.currency}. The {country.river} flows through the "
        f"country. {around} Most visitors start in {country.capital} and then go on to see the rest of the country. "
        f"{country.name} is known for {country.known_for}. Its flag looks like this: {country.flag}"
    )


WORLD: tuple[Relation, ...] = (
    Relation(
        "capital",
        tuple(fact(f"The capital of {c.name} is {c.capital}.", c.capital, s=c.name) for c in COUNTRIES),
        (
            "What is the capital of {s}?", "Which city is the capital of {s}?", "Name the capital of {s}.",
            "Tell me the capital of {s}.", "What's the capital of {s}?", "Do you know the capital of {s}?",
            "{s}: what is its capital?", "I need the capital of {s}.", "What is {s}'s capital?", "the capital of {s}",
            "What city is the capital of {s}?", "What is the capital city of {s}?",
        ),
        ("Can you name the capital city of {s}?", "Do you know which city is the capital of {s}?"),
        (*ABOUT, "And of {s}?", "And the capital of {s}?"),
        ("And its capital?", "What is its capital?", "Which city is its capital?"),
        ("{short} is the capital of {s}.", "The capital city of {s} is {short}.", "In {s}, the capital is {short}."),
        "country",
    ),
    Relation(
        "capital_of",
        tuple(fact(f"{c.capital} is the capital of {c.name}.", c.name, s=c.capital) for c in COUNTRIES),
        (
            "Which country has the capital {s}?", "{s} is the capital of which country?", "What is {s} the capital of?",
            "Of which country is {s} the capital?", "Which country's capital is {s}?", "In which country is {s}?",
            "Where is {s}?", "What country is {s} in?", "Which country is {s} the capital of?",
        ),
        ("Do you know what country {s} is the capital of?", "Tell me which country has the capital {s}."),
        ABOUT,
        (),
        ("{s} lies in {short}.", "{s} is a city in {short}."),
    ),
    Relation(
        "continent",
        tuple(fact(f"{c.name} is in {c.continent}.", c.continent, s=c.name) for c in COUNTRIES),
        (
            "Which continent is {s} in?", "On which continent is {s}?", "What continent is {s} in?", "Where is {s}?",
            "In which part of the world is {s}?", "Tell me which continent {s} is in.", "Where does {s} lie?",
            "Where in the world is {s}?", "What continent does {s} belong to?",
        ),
        ("Which continent does {s} belong to?", "Do you know where {s} is?"),
        ABOUT,
        ("Where is it?", "And which continent is it in?", "On which continent is it?"),
        ("{s} belongs to {short}.", "{s} lies in {short}.", "One of the countries in {short} is {s}."),
        "country",
    ),
    Relation(
        "currency",
        tuple(fact(f"The currency of {c.name} is the {c.currency}.", c.currency, s=c.name) for c in COUNTRIES),
        (
            "What is the currency of {s}?", "Which currency does {s} use?", "What money do people use in {s}?",
            "How do people pay in {s}?", "What currency is used in {s}?", "Tell me the currency of {s}.",
            "With what money can I pay in {s}?", "What's the currency in {s}?", "Name the currency of {s}.",
        ),
        ("Which money is used in {s}?", "What currency do people pay with in {s}?"),
        (*ABOUT, "And in {s}?"),
        ("And its currency?", "What is its currency?", "Which currency does it use?", "How do people pay there?"),
        ("People in {s} pay with the {short}.", "In {s} the money is the {short}.", "{s} uses the {short}."),
        "country",
    ),
    Relation(
        "language",
        tuple(fact(f"People in {c.name} speak {c.language}.", c.language, s=c.name) for c in COUNTRIES),
        (
            "Which language do people speak in {s}?", "What language is spoken in {s}?", "What do people speak in {s}?",
            "Which language is spoken in {s}?", "What is the language of {s}?", "Tell me the language of {s}.",
            "How do people talk in {s}?", "What languages do they speak in {s}?", "Name the language of {s}.",
        ),
        ("What language do the people of {s} speak?", "Do you know which language people speak in {s}?"),
        (*ABOUT, "And in {s}?"),
        ("And its language?", "What do people speak there?", "Which language do they speak there?"),
        ("{s} is a place where people speak {short}.", "The language of {s} is {short}.", "In {s} they speak {short}."),
        "country",
    ),
    Relation(
        "river",
        tuple(fact(f"The {c.river} flows through {c.name}.", c.river, s=c.name) for c in COUNTRIES),
        (
            "Which river flows through {s}?", "Name a river in {s}.", "What river is in {s}?",
            "Tell me a river of {s}.", "Is there a river in {s}?", "Which river is in {s}?", "What is a river in {s}?",
            "Do you know a river in {s}?",
        ),
        ("What river flows through {s}?", "Can you name a river that flows through {s}?"),
        (*ABOUT, "And in {s}?"),
        ("And which river flows there?", "Name a river there.", "Is there a river?"),
        ("A river in {s} is the {short}.", "The {short} is a river in {s}.", "In {s} you can see the {short}."),
        "country",
    ),
    Relation(
        "known_for",
        tuple(fact(f"{c.name} is known for {c.known_for}.", c.known_for, s=c.name) for c in COUNTRIES),
        (
            "What is {s} known for?", "What is {s} famous for?", "Why is {s} famous?", "What do people know {s} for?",
            "What's special about {s}?", "What is typical of {s}?", "Tell me what {s} is known for.",
        ),
        ("Do you know what {s} is famous for?", "For what is {s} known?"),
        ABOUT,
        ("And what is it known for?", "What is it famous for?", "Why is it famous?"),
        ("{s} is famous for {short}.", "Many people think of {short} when they think of {s}."),
        "country",
    ),
    Relation(
        "neighbour",
        tuple(
            fact(f"{c.neighbours[0]} is next to {c.name}.", c.neighbours[0], s=c.name)
            for c in COUNTRIES
            if c.neighbours
        ),
        (
            "Name a neighbour of {s}.", "Which country is next to {s}?", "Which country borders {s}?",
            "Name a country that borders {s}.", "What is a neighbour of {s}?", "Tell me a country next to {s}.",
        ),
        ("Can you name a country next to {s}?", "Which country is a neighbour of {s}?"),
        ABOUT,
        ("Name one of its neighbours.", "Which country is next to it?"),
        ("{s} borders {short}.", "{short} and {s} are neighbours."),
        "country",
    ),
    Relation(
        "flag",
        tuple(fact(c.flag, c.flag, s=c.name) for c in COUNTRIES),
        (
            "What is the flag of {s}?", "Show me the flag of {s}.", "What does the flag of {s} look like?",
            "flag of {s}", "What's the flag of {s}?", "Which flag does {s} have?", "Give me the flag of {s}.",
            "I need the flag of {s}.",
        ),
        ("Can you show me the flag of {s}?", "Do you know the flag of {s}?"),
        (*ABOUT, "And of {s}?"),
        ("And its flag?", "What does its flag look like?", "Show me its flag."),
        ("The flag of {s} looks like this: {short}", "{s} {short}"),
        "country",
    ),
    Relation(
        "flag_of",
        tuple(fact(f"That is the flag of {c.name}.", c.name, s=c.flag) for c in COUNTRIES),
        (
            "Whose flag is {s}?", "Which country has the flag {s}?", "What flag is {s}?",
            "{s} is the flag of which country?",
        ),
        ("Which country's flag is {s}?", "Do you know whose flag {s} is?"),
        ABOUT,
    ),
    Relation(
        "portrait",
        tuple(fact(portrait(c), f"a country in {c.continent}", s=c.name) for c in COUNTRIES),
        (
            "Tell me about {s}.", "Tell me something about {s}.", "What do you know about {s}?", "Describe {s}.",
            "What can you tell me about {s}?", "Tell me more about {s}.", "I want to learn about {s}.", "about {s}",
        ),
        ("Can you tell me all that you know about {s}?", "I want to know more about {s}."),
        (*ABOUT, "And about {s}?"),
        ("Tell me more about it.", "What else do you know about it?"),
        ("{s} is {short}.",),
        "country",
        1.5,
    ),
    Relation(
        "native_name",
        tuple(fact(native, native, s=city, t=language) for city, language, native in NATIVE_NAMES),
        (
            "What is {s} called in {t}?", "What is the {t} name of {s}?", "How do you write {s} in {t}?",
            "What do people call {s} in {t}?", "How is {s} written in {t}?", "{s} in {t}", "Write {s} in {t}.",
        ),
        ("Do you know what {s} is called in {t}?", "Tell me the {t} name of {s}."),
        ("And {s} in {t}?", "What about {s} in {t}?"),
        (),
        ("In {t}, {s} is called {short}.", "The {t} name of {s} is {short}."),
    ),
    Relation(
        "hello",
        tuple(fact(f"In {language}, hello is {hello}.", hello, s=language) for language, hello, _ in GREETINGS),
        (
            "How do you say hello in {s}?", "What is hello in {s}?", "How do I say hello in {s}?", "hello in {s}",
            "What is the word for hello in {s}?", "Say hello in {s}.", "How do people greet each other in {s}?",
        ),
        ("What is the {s} word for hello?", "Can you say hello in {s}?"),
        (*ABOUT, "And in {s}?"),
        (),
        ("The {s} word for hello is {short}.", "People who speak {s} say {short} when they meet."),
    ),
    Relation(
        "thanks",
        tuple(fact(f"In {language}, thank you is {thanks}.", thanks, s=language) for language, _, thanks in GREETINGS),
        (
            "How do you say thank you in {s}?", "What is thank you in {s}?", "How do I thank someone in {s}?",
            "thank you in {s}", "Say thank you in {s}.", "What is the word for thank you in {s}?",
        ),
        ("How do people say thank you in {s}?", "Can you say thank you in {s}?"),
        (*ABOUT, "And in {s}?"),
        (),
        ("The {s} word for thank you is {short}.", "People who speak {s} say {short} when they are grateful."),
    ),
)  # fmt: skip
