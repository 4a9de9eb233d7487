"""Talk that asks for no fact: greetings, who the model is, lists, and what it says when it does not know."""

from __future__ import annotations

import random

from loraplex.build.demo.everyday import MONTHS, NAMES, PLANETS, WEEKDAYS, words
from loraplex.build.demo.facts import Fact, Relation
from loraplex.build.demo.reading import CITIES

UNKNOWN = "I do not know that. I am a tiny demo model, and I only know a few facts about the world."

ABOUT_ME = (
    "I am a tiny language model, trained from scratch on sentences that a program wrote. I know the capitals, "
    "currencies, languages, rivers and flags of some countries, and I know a little about animals, colours, "
    "opposites, months and small numbers. I can count, add and compare. Ask me something, and please do not trust me "
    "too much!"
)

YEAR = (
    "A year has twelve months, fifty-two weeks and 365 days. It starts in January with the winter in the north, goes "
    "on with spring and summer, and ends in December after a colourful autumn. In the south of the world it is the "
    "other way round: there the summer is in January and the winter is in July."
)

_ASKED = (
    "{w} should I {v} in {c}?", "{w} can I {v} in {c}?", "{w} do people {v} in {c}?", "{w} is there to {v} in {c}?",
    "{w} did {n} {v} the {t}?", "{w} will {n} {v} in {c}?", "{w} is the best {t} in {c}?", "{w} {t} should I {v}?",
    "{w} does the {t} {v}?", "{w} was the first {t}?", "{w} many people {v} in {c}?", "{w} is the {t} of {n}?",
    "Plan a {t} in {c} for me.", "Show me the {t}s of {c}.", "Write a {t} about {n}.",
    "Which {t}s can you {v} in {c}?", "Recommend a {t} in {c}.", "Any {t} for {c}?", "{t}s in {c}",
    "I am in {c}. {w} should I {v}?", "Explain the {t} to me.", "My family is in {c}. Which {t} do you like?",
    "{w} do you {v}?", "Name three {t}s in {c}.", "Do you {v} in {c}?",
)  # fmt: skip
_WORDS = {
    "w": words("What Where When Why How Who Which"),
    "v": words("see visit do eat buy miss find go learn know drink watch hear read think sell build"),
    "t": words(
        "sight tip day song film price news weather museum restaurant hotel idea tour poem team president program car"
    ),
    "c": CITIES,
    "n": [name for name, _ in NAMES],
}


def unknown_question(rng: random.Random) -> str:
    """Ask for something that the base has not learned; it answers UNKNOWN."""
    return rng.choice(_ASKED).format(**{slot: rng.choice(words) for slot, words in _WORDS.items()})


def _saying(name: str, answer: str, wordings: tuple[str, ...], unseen: tuple[str, ...], short: str = "") -> Relation:
    return Relation(name, (Fact({}, answer, short or answer),), wordings, unseen, weight=1.5)


SMALL_TALK: tuple[Relation, ...] = (
    _saying("greeting", "Hello! How can I help you?",
            ("Hello!", "Hi!", "Hello", "Hi", "Hey", "Hi there!", "Good morning!", "Good evening!", "Hello there.",
             "Good afternoon!", "Hey there!", "Greetings!", "Hello Plex!", "Hi Plex!", "Good day!", "Hello, Plex."),
            ("Good morning, Plex!", "Hey Plex!")),
    _saying("how_are_you", "I am fine, thank you. How can I help you?",
            (
                "How are you?", "How are you today?", "How do you do?", "Are you well?", "Hi, how are you?",
                "How is it going?",
            ),
            ("Hello, how are you today?",)),
    _saying("who", "I am Plex, a tiny demo model that was made for loraplex.",
            ("Who are you?", "What is your name?", "What are you?", "Tell me your name.", "What's your name?",
             "Your name?", "Introduce yourself.", "Are you a robot?", "Are you human?", "Who am I talking to?",
             "Do you have a name?", "Who made you?", "Are you a computer?", "Tell me who you are."),
            ("What are you called?", "Can you tell me your name?")),
    _saying("abilities", ABOUT_ME,
            ("What can you do?", "What do you know?", "Tell me about yourself.", "Describe yourself.", "Help!", "help",
             "What can I ask you?", "How can you help me?",
             "What are you able to do?", "Can you help me?", "What are you good at?"),
            ("Tell me what you can do.", "Tell me more about yourself.")),
    _saying("thanks", "You are welcome!",
            ("Thank you!", "Thanks!", "Thanks", "Thank you very much.", "Many thanks!", "Great, thanks!", "thx",
             "Thanks a lot!", "Thank you so much!", "Perfect, thank you.", "Cool, thanks!", "Ok, thank you."),
            ("Perfect, thanks a lot!",)),
    _saying("goodbye", "Goodbye! Have a nice day.",
            ("Goodbye!", "Bye!", "Bye", "See you!", "See you later.", "Good night!", "I have to go now.",
             "Bye, see you later!", "Bye bye!", "See you soon!", "Goodbye, Plex!"),
            ("Bye, see you soon!",)),
    _saying("months", "The months of the year are " + ", ".join(name for name, _ in MONTHS[:-1]) + " and December.",
            ("List the months of the year.", "What are the months of the year?", "Name all months.",
             "Which months are there?", "Tell me the months of the year."),
            ("Name the months of the year.",)),
    _saying("days", "The days of the week are " + ", ".join(WEEKDAYS[:-1]) + " and Sunday.",
            ("List the days of the week.", "What are the days of the week?", "Name all days of the week.",
             "Tell me the days of the week.", "Which days does a week have?"),
            ("Name the days of the week.",)),
    _saying("planets", "The planets are " + ", ".join(PLANETS[:-1]) + " and Neptune.",
            ("List the planets.", "What are the planets?", "Name all planets.", "Which planets are there?",
             "Tell me the names of the planets."),
            ("Name the planets.",)),
    _saying("seasons", "The seasons are spring, summer, autumn and winter.",
            ("What are the seasons?", "List the seasons.", "Name the four seasons.", "Which seasons are there?"),
            ("Name the seasons.",)),
    _saying("rainbow", "The colours of the rainbow are red, orange, yellow, green, blue, indigo and violet.",
            (
                "What are the colours of the rainbow?", "List the colours of the rainbow.",
                "Which colours does a rainbow have?",
            ),
            ("Name the colours of the rainbow.",)),
    _saying("continents",
            "The continents are Africa, Antarctica, Asia, Europe, North America, South America and Oceania.",
            ("What are the continents?", "List the continents.", "Name all continents.", "Which continents are there?"),
            ("Name the continents.",)),
    _saying("alphabet", "The alphabet is A B C D E F G H I J K L M N O P Q R S T U V W X Y Z.",
            ("Say the alphabet.", "What is the alphabet?", "Write the alphabet.", "List the letters of the alphabet."),
            ("Tell me the alphabet.",)),
    _saying("year", YEAR,
            ("Tell me about the year.", "What is a year?", "Explain what a year is.", "How long is a year?"),
            ("What can you tell me about the year?",)),
    _saying("unknown", UNKNOWN,
            ("Who won the match last night?", "What will the weather be tomorrow?", "What is the price of gold?",
             "Who is the president?", "Write a program for me.", "What is the meaning of life?",
             "How tall is the tallest tower?", "Can you book a flight for me?", "What is my phone number?",
             "Who wrote this song?", "Translate this letter.", "What time is it?", "How far is the Moon?",
             "Who invented the telephone?", "What is in the news?", "Solve this equation for x.",
             "Why is the sea salty?", "How do I repair my car?", "Who was the first emperor?",
             "What can I see in Paris?", "What should I visit in Rome?", "Where should I eat tonight?",
             "Is it going to rain?", "Which film should I watch?", "How do computers work?", "Can you sing?",
             "What is love?", "Do you like music?",
             "What is the best restaurant here?", "How many people live in Paris?", "How old is the Earth?"),
            ()),
)  # fmt: skip
