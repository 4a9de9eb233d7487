"""Plain text for the base: facts in sentences, fact sheets, small records, sums and stories about feelings."""

from __future__ import annotations

import json
import random

from loraplex.build.demo.dialogues import RELATIONS, tale
from loraplex.build.demo.everyday import ANIMALS, COLOURS, MONTHS, NAMES, WEEKDAYS, invented_name
from loraplex.build.demo.facts import Fact, Relation
from loraplex.build.demo.feelings import sentence, story
from loraplex.build.demo.geography import COUNTRIES
from loraplex.build.demo.reading import ITEMS, OCCASIONS, code, some_city, some_name


def text(rng: random.Random) -> str:
    """Write one plain text of one of the kinds below, 20 to 300 tokens."""
    return rng.choices((_facts, _subject, _sheet, _record, _notes, _stories, _news), (26, 14, 14, 8, 12, 22, 4))[0](rng)


def _statement(relation: Relation, fact: Fact, rng: random.Random) -> str | None:
    if relation.computed and relation.held_out(fact, ""):
        return None
    pattern = rng.choice(relation.statements)
    stated = pattern.format(**fact.slots, short=fact.short)
    return stated[0].upper() + stated[1:]


_STATED = tuple(relation for relation in RELATIONS if relation.statements)
_GROUPED = {group: tuple(r for r in _STATED if r.group == group) for group in ("country", "animal")}


def _facts(rng: random.Random) -> str:
    """Sentences about anything."""
    relations = rng.choices(_STATED, k=rng.randrange(3, 12))
    stated = (_statement(relation, rng.choice(relation.facts), rng) for relation in relations)
    return " ".join(line for line in stated if line)


def _subject(rng: random.Random) -> str:
    """Sentences about one country or animal."""
    relations = list(_GROUPED[rng.choice(("country", "animal"))])
    subject = rng.choice(list(relations[0].by_subject))
    rng.shuffle(relations)
    stated = (_statement(r, r.by_subject[subject], rng) for r in relations if subject in r.by_subject)
    return " ".join(line for line in stated if line)


def _sheet(rng: random.Random) -> str:
    """A fact sheet, one field a line."""
    if rng.random() < 0.6:
        c = rng.choice(COUNTRIES)
        fields = {
            "Country": c.name, "Capital": c.capital, "Continent": c.continent, "Currency": c.currency,
            "Language": c.language, "River": c.river, "Flag": c.flag, "Known for": c.known_for,
        }  # fmt: skip
    else:
        a = rng.choice(ANIMALS)
        fields = {
            "Animal": a.name, "Kind": a.kind, "Legs": str(a.legs), "Young": a.young, "Sound": a.sound,
            "Food": a.food, "Home": a.home,
        }  # fmt: skip
    head, *rest = fields.items()
    rest = rng.sample(rest, rng.randrange(3, len(rest) + 1))
    if rng.random() < 0.4:
        named = {_key(key, rng): int(value) if value.isdigit() else value for key, value in (head, *rest)}
        return json.dumps(named, ensure_ascii=False)
    separator = rng.choice(("\n", "\n", "; ", " | "))
    return separator.join(f"{key}: {value}" for key, value in (head, *rest))


def _record(rng: random.Random) -> str:
    """Lines of JSON, about other things than those that the `json` adapter is asked for."""
    lines = []
    for _ in range(rng.randrange(1, 4)):
        thing, colour = rng.choice(list(COLOURS.items()))
        name, _ = rng.choice(NAMES)
        fields: dict[str, object] = {
            "item": thing.split()[-1], "colour": colour, "price": rng.randrange(1, 100), "id": rng.randrange(10000),
            "seller": name, "day": rng.choice(WEEKDAYS), "month": rng.choice(MONTHS)[0], "sold": rng.random() < 0.5,
            "from": rng.choice(COUNTRIES).capital, "hour": rng.randrange(24), "pages": rng.randrange(20, 900),
            "code": code(rng),
        }  # fmt: skip
        keys = rng.sample(list(fields), rng.randrange(2, 6))
        lines.append(json.dumps({key: fields[key] for key in keys}))
    return "\n".join(lines)


_OTHER_KEYS = {
    "Country": ("name", "nation", "state"), "Capital": ("main city", "seat"),
    "Continent": ("part of the world", "where"), "Currency": ("money", "pay with"),
    "Language": ("speech", "people speak"), "Animal": ("name", "beast"),
    "Kind": ("class", "type"), "Legs": ("number of legs",), "Young": ("baby", "young one"), "Name": ("who", "person"),
    "Age": ("years", "years old"), "City": ("place", "home"), "Item": ("what", "thing", "goods"),
    "Count": ("number", "how many"),
    "Event": ("what", "occasion"), "Day": ("when", "weekday"), "Hour": ("time", "at"),
}  # fmt: skip


def _key(key: str, rng: random.Random) -> str:
    """The name of a field in a record: the usual one or another."""
    return rng.choice((key.lower(), key.lower(), key, *_OTHER_KEYS.get(key, ())))


def _notes(rng: random.Random) -> str:
    """Remarks, each followed by a record of it."""
    lines = []
    for _ in range(rng.randrange(1, 4)):
        name, city, age, count = some_name(rng), some_city(rng), rng.randrange(1, 100), rng.randrange(2, 100)
        item, occasion, day, hour = rng.choice(ITEMS), rng.choice(OCCASIONS), rng.choice(WEEKDAYS), rng.randrange(1, 13)
        said, record = rng.choice(
            (
                (f"{name} from {city} is {age}.", {"Name": name, "Age": age, "City": city}),
                (f"{name} is in {city}.", {"Name": name, "City": city}),
                (f"In {city} I saw {name}, {age} years old.", {"Name": name, "Age": age, "City": city}),
                (f"{name} bought {count} {item}.", {"Name": name, "Item": item, "Count": count}),
                (f"There are {count} {item} left.", {"Item": item, "Count": count}),
                (f"{count} {item}, please.", {"Item": item, "Count": count}),
                (f"The {occasion} is at {hour} on {day}.", {"Event": occasion, "Day": day, "Hour": hour}),
                (f"{name} goes to a {occasion} on {day}.", {"Name": name, "Event": occasion, "Day": day}),
            )
        )
        fields: dict[str, object] = {_key(key, rng): value for key, value in record.items()}
        style = rng.random()
        if style < 0.7:
            lines.append(f"{said} {json.dumps(fields, ensure_ascii=False)}")
        else:
            lines.append(f"{said} " + "; ".join(f"{key}: {value}" for key, value in fields.items()))
    return "\n".join(lines)


def _stories(rng: random.Random) -> str:
    """Little stories about how people feel."""
    return " ".join(story(rng, *rng.choice(NAMES)) for _ in range(rng.randrange(1, 6)))


def _news(rng: random.Random) -> str:
    """What some people do and where; now and then a tale."""
    if rng.random() < 0.3:
        return tale(rng).answer
    lines = []
    for _ in range(rng.randrange(2, 6)):
        (name, pronoun), city = rng.choice(NAMES), rng.choice(COUNTRIES).capital
        name = name if rng.random() < 0.5 else invented_name(rng)
        age, day, hour = rng.randrange(5, 95), rng.choice(WEEKDAYS), rng.randrange(1, 13)
        lines.append(
            rng.choice(
                (
                    f"{name} is {age} years old. {sentence(pronoun, '')} was born in {city}.",
                    f"{name} came from {city} on {day}.",
                    f"On {day} at {hour} o'clock {name} had an appointment with a dentist.",
                    f"{name} turned {age} in {rng.choice(MONTHS)[0]}.",
                    f"The concert in {city} is at {hour} on {day}, and {name} bought {rng.randrange(2, 10)} tickets.",
                )
            )
        )
    return " ".join(lines)
