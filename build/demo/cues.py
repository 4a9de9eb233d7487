"""Words of feeling in sentences about anything, so that the base learns to go by those words and by nothing else."""

from __future__ import annotations

import random

from loraplex.build.demo.everyday import ANIMALS, JOBS, NAMES, PLACES, WEEKDAYS, agree, words
from loraplex.build.demo.geography import COUNTRIES
from loraplex.build.demo.lexicon import CUES, Cues

_THINGS = words(
    "table chair lamp book cup shoe piano violin box letter coat window bridge road river house village town hill "
    "lake wall garden roof kitchen office school shop bus train boat plane clock picture film speech song test "
    "number answer name neighbour uncle aunt cousin mother father sister brother son daughter wife husband teacher "
    "boss friend friends family team class baby boy girl man woman children grandson grandma grandpa dad mum king "
    "mayor crowd club choir student"
)
_TAME = [a.name for a in ANIMALS if a.name not in ("lion", "tiger", "bear", "wolf", "snake", "crocodile")]
_WHEN = (
    "today", "yesterday", "last night", "this morning", "in the evening", "at noon", "after dark", "all day",
    "all night", "since May", "for years", "in summer", "at the weekend", "after dinner", "at last", "again",
    "ever since", "now", "once more",
)  # fmt: skip
_DID = (
    "opened the {t}", "went to {o}", "talked about the {t}", "sat next to {o}", "wrote to {o}", "bought a {t}",
    "read the {t}", "waited for {o}", "stood near the {t}", "called {o}", "came from the {t}", "looked at {o}",
    "walked along the {t}", "asked {o}", "had the {t}", "heard {o}", "told {o} about the {t}", "carried the {t} to {o}",
    "met {o}", "kept the {t}", "showed the {t} to {o}", "took the {t} from {o}", "was at the {t}", "knew {o}",
    "lived near the {t}", "put it on the {t}",
)  # fmt: skip
_SIDES = (
    "and it rained", "and then we went home", "while I was at work", "and the bus was late",
    "when the clock struck nine", "and we had soup for dinner", "as I opened the door", "and nobody spoke",
    "while the others were asleep", "on the way to work", "before the train left", "and I wrote it down",
    "when we came back", "and my phone rang", "while we sat at the table",
)  # fmt: skip


def remark(feeling: int, rng: random.Random) -> str:
    """Say something with one to three words of one feeling; `feeling` is its place in `feelings.FEELINGS`."""
    cues = CUES[feeling]
    text = _clause(cues, rng)
    draw = rng.random()
    if draw < 0.12:
        text = f"{text} {rng.choice(_SIDES)}"
    elif draw < 0.22:
        text = f"{text}{rng.choice((' and ', ', ', ' when ', '. ', ' while ', ', but '))}{_happening(rng)}"
    elif draw < 0.32:
        text = f"{_happening(rng)}{rng.choice((' and ', ', ', ', and ', '. ', ' because ', ', but '))}{text}"
    elif draw < 0.4:
        text = f"{rng.choice(_SIDES).removeprefix('and ').removeprefix('while ')}, and {text}"
    elif draw < 0.6:
        text = f"{text}, and {_clause(cues, rng)}"
    elif draw < 0.72:
        text = f"{rng.choice(cues.shouts)}, {text}"
    elif draw < 0.8:
        text = f"{text}, {rng.choice(cues.shouts)}"
    elif draw < 0.83:
        text = rng.choice(cues.shouts)
    return agree(text[0].upper() + text[1:] + rng.choice("...!"))


def _clause(cues: Cues, rng: random.Random) -> str:
    who, other, when = _someone(rng), _someone(rng), rng.choice(_WHEN)
    draw = rng.random()
    if draw < 0.36:
        noun = rng.choice(cues.nouns)
        a = rng.choice(("the", "a", "our", "my", "this", "another"))
        return rng.choice(
            (
                f"there was {a} {noun} {when}", f"{a} {noun} {when}", f"{who} told me about {a} {noun}",
                f"what a {noun}", f"{a} {noun} was all we talked about", f"I think of {a} {noun} {when}",
                f"{a} {noun} came {when}", f"after {a} {noun} {who} went to {other}", f"{who} and {a} {noun}",
                f"{a} {noun} at the {rng.choice(_THINGS)}", f"I saw {a} {noun} next to {who}",
                f"{who} spoke of {a} {noun}", f"{noun}s everywhere", f"it was {a} {noun}",
                f"{a} {noun} made {who} stop", f"since {a} {noun}, {who} is not the same",
                f"no {noun} like this {when}", f"{who} had {a} {noun} {when}", f"{a} {noun} for {who}",
                f"{a} {rng.choice(cues.adjectives)} {noun}",
            )
        )  # fmt: skip
    verb = rng.choice(cues.verbs)
    if draw < 0.68:
        return rng.choice(
            (
                f"{who} {verb.past} {when}", f"{who} {verb.past}", f"I {verb.past} {when}",
                f"we {verb.past} near {other}", f"{who} {verb.present} {when}",
                f"{who} {verb.present} whenever it rains", f"I keep {verb.going_on}",
                f"{who} started {verb.going_on} {when}", f"I saw {who} {verb.going_on}", f"{when} {who} {verb.past}",
                f"everybody {verb.past}", f"I heard that {who} {verb.past}", f"she {verb.past} because of {other}",
                f"nobody but {who} {verb.past}", f"he {verb.past} at the {rng.choice(_THINGS)}",
                f"they {verb.past} {when}", f"{who} {verb.past} in front of {other}", f"I {verb.past} like a child",
                f"the {rng.choice(_THINGS)} {verb.past}",
            )
        )  # fmt: skip
    adjective = rng.choice(cues.adjectives)
    return rng.choice(
        (
            f"{who} was {adjective} {when}", f"I am {adjective}", f"I feel {adjective} {when}",
            f"{who} is {adjective} now", f"we were {adjective} about {other}",
            f"{adjective} and tired, {who} went home", f"how {adjective} it is", f"{who} looked {adjective}",
            f"she is so {adjective}", f"it was {adjective} {when}", f"{who} left me {adjective}",
            f"everything was {adjective}", f"I was {adjective} at the {rng.choice(_THINGS)}",
            f"{who} sounds {adjective}", f"the {rng.choice(_THINGS)} was {adjective}",
            f"they are {adjective} because of {other}", f"{adjective}, {who} sat down", f"{who} made me {adjective}",
            f"{adjective} or not, {who} is here", f"I am {adjective} of {other}",
        )
    )  # fmt: skip


def _happening(rng: random.Random) -> str:
    """Something that has no feeling of its own."""
    did = rng.choice(_DID).format(t=rng.choice(_THINGS), o=_someone(rng))
    return f"{_someone(rng)} {did}" + (f" {rng.choice(_WHEN)}" if rng.random() < 0.3 else "")


def _someone(rng: random.Random) -> str:
    """Anyone or anything, without a feeling of its own."""
    draw = rng.random()
    if draw < 0.5:
        return f"{rng.choice(('the', 'my', 'our', 'her', 'his'))} {rng.choice(_THINGS)}"
    if draw < 0.65:
        return f"{rng.choice(('the', 'our', 'a'))} {rng.choice(_TAME)}"
    if draw < 0.75:
        return rng.choice(NAMES)[0]
    if draw < 0.85:
        return f"the {rng.choice(JOBS)[0]}"
    if draw < 0.92:
        return f"the {rng.choice(PLACES)[0]} in {rng.choice(COUNTRIES).capital}"
    return rng.choice((*WEEKDAYS, "she", "he", "it", "everyone", "somebody"))
