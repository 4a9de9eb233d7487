"""What the demo model knows of daily life: animals, colours, opposites, the calendar, numbers, jobs, places, names."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass


def words(text: str) -> tuple[str, ...]:
    """Split a text at its white space."""
    return tuple(text.split())


@dataclass(frozen=True)
class Animal:
    """One animal; the fields after `legs` are ready to be put into a sentence."""

    name: str
    kind: str
    legs: int
    young: str
    sound: str
    food: str
    home: str
    trait: str
    emoji: str


_ANIMALS = """
cat|mammal|4|kitten|meows|mice and fish|houses and gardens|can see well in the dark|🐱
dog|mammal|4|puppy|barks|meat|houses and yards|can follow a smell for miles|🐶
cow|mammal|4|calf|moos|grass|meadows and barns|gives milk|🐮
horse|mammal|4|foal|neighs|hay and grass|stables and meadows|can sleep while it stands|🐴
pig|mammal|4|piglet|grunts|roots and corn|sties and forests|likes to roll in mud|🐷
sheep|mammal|4|lamb|bleats|grass|hills and meadows|gives wool|🐑
goat|mammal|4|kid|bleats|leaves and grass|farms and mountains|can climb steep rocks|🐐
lion|mammal|4|cub|roars|meat|the grasslands of Africa|hunts together with its family|🦁
tiger|mammal|4|cub|roars|meat|the forests of Asia|has stripes on its fur|🐯
bear|mammal|4|cub|growls|berries and fish|forests and mountains|sleeps through the winter|🐻
wolf|mammal|4|pup|howls|meat|forests and cold plains|lives in a pack|🐺
fox|mammal|4|cub|yelps|mice and berries|woods and fields|has a long bushy tail|🦊
elephant|mammal|4|calf|trumpets|leaves and bark|the grasslands of Africa|is the largest animal on land|🐘
mouse|mammal|4|pup|squeaks|seeds and grain|fields and old houses|can fit through tiny holes|🐭
rabbit|mammal|4|kit|squeaks|grass and carrots|burrows under the ground|has very long ears|🐰
deer|mammal|4|fawn|grunts|leaves and buds|quiet forests|can jump over high fences|🦌
monkey|mammal|4|infant|chatters|fruit and nuts|warm rainforests|swings from tree to tree|🐒
kangaroo|mammal|4|joey|clicks|grass and shrubs|the dry plains of Australia|carries its young in a pouch|🦘
camel|mammal|4|calf|groans|dry grass and thorns|hot deserts|can live for days without water|🐫
dolphin|mammal|0|calf|clicks|fish and squid|warm seas|must come up to breathe air|🐬
whale|mammal|0|calf|sings|tiny sea animals|deep oceans|is larger than any other animal|🐳
duck|bird|2|duckling|quacks|water plants and snails|ponds and rivers|has feathers that stay dry|🦆
hen|bird|2|chick|clucks|grain and worms|farms and back yards|lays eggs almost every day|🐔
goose|bird|2|gosling|honks|grass and grain|lakes and wet fields|flies far in the autumn|🪿
owl|bird|2|owlet|hoots|mice and beetles|old trees and barns|can turn its head very far|🦉
eagle|bird|2|eaglet|screeches|fish and rabbits|mountains with high cliffs|can see prey from far above|🦅
parrot|bird|2|chick|squawks|nuts and fruit|tropical forests|can copy human words|🦜
penguin|bird|2|chick|honks|fish and krill|icy southern coasts|swims but cannot fly|🐧
frog|amphibian|4|tadpole|croaks|flies and worms|ponds and wet grass|breathes through its skin|🐸
snake|reptile|0|hatchling|hisses|mice and eggs|grass and heaps of stones|smells with its tongue|🐍
turtle|reptile|4|hatchling|hisses|plants and jellyfish|warm seas and ponds|carries a hard shell|🐢
crocodile|reptile|4|hatchling|bellows|fish and birds|slow warm rivers|has very strong jaws|🐊
bee|insect|6|larva|buzzes|nectar and pollen|hives and hollow trees|makes honey|🐝
cricket|insect|6|nymph|chirps|leaves and seeds|dry meadows|sings by rubbing its wings|🦗
"""


def _animal(row: str) -> Animal:
    name, kind, legs, young, sound, food, home, trait, emoji = row.split("|")
    return Animal(name, kind, int(legs), young, sound, food, home, trait, emoji)


ANIMALS: tuple[Animal, ...] = tuple(_animal(row) for row in _ANIMALS.strip().splitlines())

COLOURS: dict[str, str] = {
    "the sky": "blue", "grass": "green", "snow": "white", "coal": "black", "a lemon": "yellow", "a carrot": "orange",
    "blood": "red", "milk": "white", "chocolate": "brown", "a tomato": "red", "a banana": "yellow", "ink": "blue",
    "a plum": "purple", "an elephant": "grey", "a flamingo": "pink", "a raven": "black", "the sun": "yellow",
    "a ripe strawberry": "red", "salt": "white", "an old penny": "brown", "a fir tree": "green", "lavender": "purple",
    "a pumpkin": "orange", "ash": "grey", "an emerald": "green", "a ruby": "red", "a sapphire": "blue",
    "a polar bear": "white", "a fire engine": "red", "honey": "golden",
}  # fmt: skip

OPPOSITES: tuple[tuple[str, str], ...] = (
    ("hot", "cold"), ("big", "small"), ("fast", "slow"), ("up", "down"), ("day", "night"), ("open", "closed"),
    ("light", "dark"), ("old", "young"), ("happy", "sad"), ("rich", "poor"), ("wet", "dry"), ("full", "empty"),
    ("early", "late"), ("hard", "soft"), ("high", "low"), ("near", "far"), ("thick", "thin"), ("strong", "weak"),
    ("clean", "dirty"), ("loud", "quiet"), ("first", "last"), ("inside", "outside"), ("left", "right"),
    ("true", "false"), ("long", "short"), ("easy", "difficult"), ("sweet", "bitter"), ("deep", "shallow"),
    ("sharp", "blunt"), ("win", "lose"), ("begin", "end"), ("buy", "sell"), ("love", "hate"), ("arrive", "leave"),
    ("push", "pull"), ("remember", "forget"), ("laugh", "cry"), ("always", "never"), ("above", "below"),
    ("before", "after"),
)  # fmt: skip

MONTHS: tuple[tuple[str, int], ...] = (
    ("January", 31), ("February", 28), ("March", 31), ("April", 30), ("May", 31), ("June", 30),
    ("July", 31), ("August", 31), ("September", 30), ("October", 31), ("November", 30), ("December", 31),
)  # fmt: skip
"""(name, days in a common year)."""

WEEKDAYS: tuple[str, ...] = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")

PLANETS: tuple[str, ...] = ("Mercury", "Venus", "Earth", "Mars", "Jupiter", "Saturn", "Uranus", "Neptune")
"""In their order from the Sun."""

JOBS: tuple[tuple[str, str], ...] = (
    ("baker", "bakes bread"), ("doctor", "treats sick people"), ("teacher", "teaches children"),
    ("pilot", "flies planes"), ("farmer", "grows food"), ("tailor", "sews clothes"), ("carpenter", "builds furniture"),
    ("plumber", "repairs pipes"), ("painter", "paints pictures"), ("fisher", "catches fish"),
    ("postman", "delivers letters"), ("librarian", "lends books"), ("dentist", "cares for teeth"),
    ("gardener", "looks after plants"), ("judge", "decides in court"), ("sailor", "works on ships"),
    ("author", "writes books"), ("waiter", "serves meals"), ("miner", "digs for coal"), ("barber", "cuts hair"),
    ("butcher", "sells meat"), ("firefighter", "puts out fires"), ("vet", "treats sick animals"),
    ("mechanic", "repairs cars"), ("architect", "plans houses"), ("translator", "turns texts into other languages"),
)  # fmt: skip

PLACES: tuple[tuple[str, str], ...] = (
    ("museum", "look at art and old things"), ("library", "read and borrow books"), ("market", "buy and sell food"),
    ("school", "learn and teach"), ("hospital", "are treated when they are ill"), ("bakery", "buy bread and cakes"),
    ("theatre", "watch plays"), ("station", "get on and off trains"), ("harbour", "load and unload ships"),
    ("airport", "board planes"), ("stadium", "watch sports"), ("temple", "pray and find peace"),
    ("cathedral", "pray under high arches"), ("palace", "once served a king or a queen"),
    ("castle", "were once safe behind thick walls"), ("tower", "climb up to see far"), ("bridge", "cross a river"),
    ("square", "meet in the middle of a city"), ("park", "walk among trees and lawns"), ("zoo", "look at animals"),
    ("opera house", "listen to singers"), ("restaurant", "eat meals"), ("pharmacy", "buy medicine"),
    ("beach", "swim and lie in the sun"), ("garden", "grow flowers and vegetables"), ("office", "work at desks"),
)  # fmt: skip

NAMES: tuple[tuple[str, str], ...] = tuple(
    (name, pronoun)
    for pronoun, names in (
        ("she", "Anna Maria Clara Emma Julia Laura Nina Sofia Elena Ida Alice Ruth Vera Greta Hanna Lena Marta Olga "
                "Paula Rosa Sara Tina Zoe Amina Leila Mei Yuki Priya Nadia Ines Carla Diana Eva Fatima Helen Irene "
                "Jana Kate Lucy Mona Nora Petra Rita Stella Tara Wanda Yara Zara Bella Chloe"),
        ("he", "Peter Paul Tom David Daniel Martin Lukas Jan Erik Omar Ali Hugo Leo Max Felix Oscar Victor Bruno "
               "Carlos Diego Marco Pedro Ivan Boris Anton Karl Hans Otto Emil Axel Nils Sven Kenji Ravi Sanjay Wei "
               "Chen Jin Samir Yusuf Kofi Juma Liam Noah Owen Ryan Simon Theo Walter Adam"),
    )
    for name in names.split()
)  # fmt: skip
"""(first name, pronoun)."""

ONES = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
TENS = words("twenty thirty forty fifty sixty seventy eighty ninety")


def agree(text: str) -> str:
    """Write `an` for `a` before a vowel."""
    return re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", text)


def invented_name(rng: random.Random) -> str:
    """Make up a name of two or three syllables, so that names have to be read and cannot be known."""
    syllables = (
        rng.choice("bdfghjklmnprstvwyz") + rng.choice("aeiou") + rng.choice(("", "", "n", "r", "l", "s"))
        for _ in range(3)
    )
    return "".join(list(syllables)[: rng.choice((2, 2, 3))]).capitalize()


def number_word(number: int) -> str:
    """Write 0..99 in words. Raises IndexError outside."""
    if number < len(ONES):
        return ONES[number]
    tens, one = divmod(number, 10)
    return TENS[tens - 2] + (f"-{ONES[one]}" if one else "")
