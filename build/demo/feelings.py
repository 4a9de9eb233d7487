"""What the base model knows of feelings: words, causes and reactions by feeling, and what it answers to them.

None of this uses the labels of the `tone` adapter, and none of it is a row of its data (see `phrases`): the base learns
what the words mean, the adapter learns to name the feeling.
"""

from __future__ import annotations

import random
import string
from dataclasses import dataclass

SLOTS: dict[str, tuple[str, ...]] = {
    "kin": ("mother", "father", "sister", "brother", "uncle", "aunt", "grandmother", "grandfather", "cousin", "son",
            "daughter", "husband", "wife", "niece", "neighbour", "teacher", "friend", "best friend"),
    "pet": ("dog", "cat", "rabbit", "horse", "parrot", "puppy", "kitten", "goldfish", "hamster"),
    "thing": ("ring", "watch", "phone", "bike", "car", "guitar", "wallet", "necklace", "photo album", "letter",
              "house"),
    "when": ("today", "yesterday", "last night", "this morning", "last week", "on Sunday", "this evening", "in May"),
    "place": ("the forest", "the cellar", "the street", "the kitchen", "the garden", "the station", "the attic"),
    "event": ("exam", "match", "interview", "test", "race", "competition", "audition"),
    "beast": ("wolf", "snake", "bear", "spider", "shark", "tiger", "rat"),
}  # fmt: skip


@dataclass(frozen=True)
class Feeling:
    """One feeling. `causes` are noun phrases, `reactions` verbs in the past tense, `statements` clauses, with slots."""

    adjective: str
    adjectives: tuple[str, ...]
    causes: tuple[str, ...]
    reactions: tuple[str, ...]
    statements: tuple[str, ...]
    reply: str


def _split(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(";"))


FEELINGS: tuple[Feeling, ...] = (
    Feeling(
        "sad",
        _split("""unhappy; miserable; heartbroken; lonely; gloomy; depressed; down; sorrowful; upset; devastated; hurt;
            hopeless; homesick; blue; crushed; in tears; low; disappointed; in mourning; full of grief; abandoned"""),
        _split("""a funeral; a grave; losing a friend; the death of a {kin}; a broken heart; a divorce; saying goodbye;
        being left alone; an empty chair at the table; failing an {event}; losing a job; a lost {thing}; a cruel word;
        missing home; an old photo of someone who is gone; the loss of a {pet}; being forgotten; a farewell letter; a
        cancelled trip; bad news from the hospital; loneliness; grief; sorrow; a goodbye at the station; an illness
        that nobody can cure; a ruined wedding; being rejected; regret; a burnt-down home; defeat; watching someone
        suffer; an empty house; a dying {pet}; memories of a lost love; tears; misery; a coffin"""),
        _split("""cried; cried for hours; sobbed; wept; burst into tears; wiped away a tear; stayed in bed; mourned;
            could not stop weeping; sighed and looked at the floor; cried into a pillow; grieved for months; felt empty;
            felt alone; missed the old days; lost all hope; wanted to be left alone; ached inside; had no appetite;
            stared out at the rain; had a heavy heart; could not smile; had wet eyes; sniffled quietly; broke down;
            sat alone in the dark; swallowed the tears; felt that life was grey; regretted everything; whimpered"""),
        _split("""my {kin} died {when}; my {pet} died {when}; my {pet} passed away {when}; I lost my {thing}; he left
        me; my {kin} is very ill; I failed the {event}; we lost the {event}; I miss my {kin}; I miss my {pet} so much;
        my {kin} is gone; I went to the funeral of my {kin}; she broke up with me {when}; nobody came to my party; I
        lost my job {when}; nobody loves me; I have no friends; I feel so alone; we buried my {kin} {when}; my {kin}
        forgot me; my {thing} was stolen {when}; I am grieving for my {kin}; I was rejected {when}; I had to give away
        my {pet}; my {kin} moved far away; my {thing} is broken beyond repair; I am homesick; I am crying; tears fill
        my eyes; my heart aches; the grave of my {kin} is covered with leaves; I feel low; the illness of my {kin} got
        worse; our home burned down; I was fired {when}; everybody left without me; my {kin} will never come back; I am
        weeping over the loss of my {pet}; the house is empty without my {kin}; it hurts to think of my {kin}; I mourn
        my {pet}; I am full of regret; I was left out again {when}"""),
        "I am sorry to hear that. I hope that you feel better soon.",
    ),
    Feeling(
        "happy",
        _split("""glad; joyful; delighted; cheerful; merry; proud; thrilled; overjoyed; pleased; in high spirits;
        content; grateful; blissful; excited; jolly; elated; over the moon; in love; radiant; lucky; full of delight
        """),
        _split("""a wedding; a birthday party; winning a prize; passing an {event}; a sunny holiday; good news; a new
        {pet}; the birth of a child; a hug from a {kin}; falling in love; a promotion; a picnic with friends; a dream
        come true; a warm welcome; dancing all night; a delicious cake; laughing with friends; a victory; the first day
        of holiday; a kind word; a song that everybody sings; coming home at last; a healthy baby; a medal; applause;
        success; a perfect day at the beach; a playful {pet}; good food and good company; being praised; a festival;
        sunshine; getting well again; seeing a {kin} again; a pay rise; a first kiss; bliss; laughter; a full heart;
        delight"""),
        _split("""laughed; smiled; smiled all day; danced; sang; hugged everyone; jumped for joy; cheered; grinned;
            clapped and sang; could not stop smiling; whistled a tune; giggled; beamed with pride; celebrated; twirled;
            thanked everyone; felt on top of the world; danced around the kitchen; hummed a song; felt warm inside;
            had the time of a lifetime; enjoyed every minute; threw a party; raised a glass; skipped down the street;
            felt lucky and loved; laughed out loud; shone with delight; blew kisses; high-fived the whole team"""),
        _split("""I passed the {event}; we won the {event}; I got the job; I am getting married; my {kin} had a baby; I
        got a new {pet} {when}; I got a promotion {when}; I am so happy {when}; I love my {pet}; I am in love; my {kin}
        came home {when}; it is my birthday; the party was wonderful; I won a prize {when}; life is good; I had a great
        day with my {kin}; the sun is shining and I feel great; my {kin} is healthy again; we danced; I love my new
        {thing}; my {kin} hugged me; I had so much fun {when}; everything went well; I can not stop smiling; my dream
        came true; we celebrated {when}; I enjoyed the concert; we laughed together {when}; I am proud of my {kin}; I
        got top marks in the {event}; the holiday was perfect; I am grateful for my {kin}; we are having a baby; I
        finished first in the {event}; my {pet} is well again; I am delighted with my {thing}; our wedding was lovely;
        I was praised {when}; what a beautiful day; I feel on top of the world; the cake tasted delicious; I got a
        medal in the {event}; my {kin} and I sang all evening; we cheered"""),
        "That is wonderful! I am happy for you.",
    ),
    Feeling(
        "afraid",
        _split("""scared; frightened; terrified; anxious; nervous; worried; panicked; in panic; alarmed; uneasy;
        petrified; full of dread; horrified; tense; timid; fearful; spooked; scared stiff; on edge; shaken; threatened
        """),
        _split("""a dark cellar; a ghost; a nightmare; a {beast}; a growling {beast}; a thunderstorm; an earthquake; a
        burglar; a stranger at the door; walking alone at night; a fire; a deep dark hole; heights; a scream in the
        night; a knife; a threat; a monster under the bed; footsteps behind you; an operation; a haunted house; war;
        danger; a wild {beast}; a car that will not stop; a flood; losing control; a creaking floor; a dentist's drill;
        being followed; a bomb; a gun; a shadow at the window; a storm at sea; an attack; being lost in {place}; a
        strange noise in {place}; poison; a tall ladder; thunder and lightning; a phone call at midnight; terror"""),
        _split("""trembled; shook; screamed; hid under the bed; ran away; locked the door; froze; could not breathe;
        held on tight; shivered; turned pale; did not dare to move; called for help; prayed to be safe; backed away;
        covered both eyes; could not sleep; began to sweat; lay awake all night; felt a cold shiver; whispered for
        help; checked every lock; had shaking hands; fled; cowered in a corner; felt the heart pound; panicked;
        shrieked; gripped the rail; had a dry mouth; held a breath; did not dare to look; kept the lights on; begged
        for mercy"""),
        _split("""I heard footsteps in {place}; someone is following me; there is a {beast} in {place}; I am scared of
        the dark; I am afraid of the {event}; I had a nightmare {when}; I am terrified; there is a stranger in {place};
        a {beast} is chasing me; I think that someone is in {place}; I do not dare to go into {place}; I am scared that
        my {kin} will die; I hear strange noises in {place}; the {beast} growled at me; I am worried about the
        operation; something moved in {place}; I am hiding in {place}; please help me; a man with a knife stood in
        {place}; the storm is getting closer; my hands shake before the {event}; the plane is shaking; I am too nervous
        to sleep before the {event}; the ground began to shake {when}; I can not swim and the water is deep; I saw a
        ghost in {place}; someone broke into my house {when}; the lights went out and I heard breathing; my {kin} is in
        danger; I dread the {event}; I was threatened {when}; I am afraid to be alone in {place}; a dark shape stood in
        {place}; I panic when I see a {beast}; I trembled; the {beast} came closer; the fire spreads fast; I feel
        unsafe in {place}; I ran from a {beast} {when}; the brakes do not work; the ice is cracking under my feet; I
        hid from the {beast}; heights make me dizzy"""),
        "That sounds frightening. I hope that you are safe.",
    ),
    Feeling(
        "surprised",
        _split("""astonished; amazed; shocked; stunned; startled; speechless; baffled; taken aback; puzzled;
        dumbfounded; astounded; caught off guard; bewildered; perplexed; flabbergasted; at a loss for words;
        incredulous"""),
        _split("""an unexpected visit; a sudden twist; a magic trick; a secret that comes out; a hidden door; snow in
        July; a gift out of nowhere; an unexpected answer; finding money in an old coat; meeting a {kin} by chance; a
        rabbit in a hat; a sudden change of plan; an unlikely winner; a parcel that nobody ordered; a strange result; a
        {pet} that opens doors; a surprise party; a plot twist; a coincidence; a mystery; a {kin} in a strange costume;
        a letter after twenty years; a talking parrot; news that nobody saw coming; an odd discovery; a sudden turn;
        something unbelievable; the last thing you expect; a wonder; a stranger who knows your name; a curious find; an
        impossible score; a twin that nobody knew about; a {thing} that turns up again; an unusual sight"""),
        _split("""gasped; blinked twice; could not believe it; stared with an open mouth; was lost for words; looked
        again; raised both eyebrows; dropped the cup; said wow; did not see it coming; stood there speechless; had to
        sit down; asked if it was real; never expected it; rubbed both eyes; looked twice; was left without words; said
        no way; let out a gasp; did a double take; thought that it was a joke; could hardly believe the news; stopped
        dead; checked it three times; was caught off guard; wondered how it was possible; had wide eyes; said what on
        earth"""),
        _split("""I did not expect that; I never saw that coming; my {kin} suddenly stood in {place}; wow, what a
        twist; I can not believe it; I found my old {thing} in {place}; out of nowhere my {kin} showed up {when}; no
        way; who would have thought it; I had no idea that my {kin} could sing; it turned out that my {kin} has a twin;
        I never knew that my {kin} was a spy; suddenly it snowed in July; my {pet} opened the door by itself; wow; the
        answer was not what I expected; I met my {kin} by chance in {place}; that came out of the blue; my {thing}
        turned up in {place} after ten years; to my amazement my {kin} can fly a plane; is that really true; I got a
        parcel that I never ordered {when}; nobody expected the result of the {event}; how is that possible; the quiet
        {kin} suddenly shouted; my {kin} changed the plan without a word; I was speechless {when}; against all odds the
        last runner won the {event}; there was a {thing} inside the box; I am stunned by the news; I was amazed {when};
        the magician knew my name; what a coincidence, my {kin} was there too; I gasped {when}; the {thing} simply
        vanished; I turned around and there was my {kin}; that is unbelievable; I am baffled; I was caught off guard
        {when}; it was the last thing that I expected; my {pet} can count, unbelievably; I stared at the {thing} in
        disbelief; nobody told me that my {kin} was coming; the ending astonished me"""),
        "What a surprise! I did not expect that either.",
    ),
)


def fill(pattern: str, rng: random.Random) -> str:
    """Put a random word into every {slot} of a pattern."""
    names = {name for _, name, _, _ in string.Formatter().parse(pattern) if name}
    return pattern.format(**{name: rng.choice(SLOTS[name]) for name in sorted(names)})


def sentence(clause: str, end: str = ".") -> str:
    """Write a clause as a sentence: a capital letter first, `end` last."""
    return clause[0].upper() + clause[1:] + end


def story(rng: random.Random, name: str, pronoun: str) -> str:
    """Tell in two to four sentences what made one person feel one way."""
    feeling = rng.choice(FEELINGS)
    cause = fill(rng.choice(feeling.causes), rng)
    adjective, other = rng.sample((feeling.adjective, *feeling.adjectives), 2)
    reaction, second = (fill(text, rng) for text in rng.sample(feeling.reactions, 2))
    said = sentence(fill(rng.choice(feeling.statements), rng), ",")
    they = sentence(pronoun, "")
    return rng.choice(
        (
            f"{name} was {adjective} because of {cause}. {they} {reaction}.",
            f"{they} {reaction}. {name} felt {adjective} and {other}.",
            f"{name} {reaction}. Why was {name} so {adjective}? It was because of {cause}. {they} {second}.",
            f"It was because of {cause} that {name} {reaction}. {they} was {adjective}, and {pronoun} {second}.",
            f"People are often {adjective} because of {cause}. So {name} {reaction} and {second}.",
            f'"{said}" said {name}. {they} was {adjective} and {reaction}.',
            f"People feel {adjective} because of {cause}. {name} {reaction}.",
            f"To be {adjective} is to be {feeling.adjective}. When {name} was {adjective}, {pronoun} {reaction}.",
            f"When people are {feeling.adjective}, they may also be {adjective} or {other}.",
            f'"I {reaction}," said {name}. "It was because of {cause}."',
        )
    )
