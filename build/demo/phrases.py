"""Phrases for training the `tone` adapter.

A training phrase is made from clauses. The held-out phrases (`heldout_phrases`) were written apart from them.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import product

LABELS = ("sadness", "joy", "fear", "surprise")
"""In the order of `feelings.FEELINGS`."""


def _split(text: str) -> tuple[str, ...]:
    return tuple(" ".join(part.split()) for part in text.split(";"))


EVENTS: dict[str, tuple[str, ...]] = {
    "sadness": _split("""my grandmother died last night; my old dog passed away; my best friend moved to another
        country; I failed the exam for the second time; my girlfriend left me; we had to sell the family home; I lost
        my keys; I was not invited to the wedding; nobody remembered my birthday; my cat never came home; I lost my job
        this morning; our marriage is over; I spent the holidays all alone; my son does not call me any more; we lost
        the final; the doctor could not save him; they closed the little library; I broke my mother's favourite vase;
        it is over; I had to say goodbye to my sister; the letter said that I was not accepted; my friend will not talk
        to me; the old tree by our house was cut down; I lost the ring that my father gave me; the baby bird did not
        survive; I did not get the part in the play; the other children laughed at me; my favourite singer died; she
        said that she does not love me; we buried our horse today; I missed the funeral; he forgot about me; my parents
        are getting divorced; I miss my old school; the puppy was too sick to live; the war took my brother; all my
        photos are gone; I can not visit my family this year; my father is very ill; they all left without me; our old
        cat is dead; the bird fell from its nest and died; my uncle was buried on a rainy day; my sister is in hospital
        again; my mother has been ill since spring; nobody wrote to me at Christmas; my best friend lied to me; they
        sold my father's boat; the fire took our barn; the flowers on her grave are dry; I was not chosen for the team;
        my boss fired me without a word; my son moved out and his room is bare; the family does not eat together any
        more; my wife walked out on me; my plants all died in the heat; the old shop on the corner is closed for ever;
        I had to leave my village; my guitar was stolen; the letter brought bad news; my grandfather does not know my
        name any more; he died before I could say sorry; we broke up after ten years; I ate alone again; my application
        was rejected; the last train left without me; the doctor shook her head; my childhood home was torn down; they
        forgot to pick me up; my little brother cries for our dog"""),
    "joy": _split("""I passed the exam; we won the final; my sister had a baby girl; I got the job; he asked me to
        marry him; we are going to the sea tomorrow; my best friend is coming to visit; my son took his first steps; I
        won the lottery; today is my birthday; my team is in first place; we adopted a puppy; the doctor says that I am
        healthy again; my daughter finished school today; the sun is out and the birds sing; we danced until midnight;
        I got good marks; I got tickets for the concert; my book was printed at last; our garden is full of flowers; I
        love my new job; she said yes; my grandfather told us his funniest story; we are having a party tonight; my
        parents are so proud of me; I baked the best cake ever; the whole family sat around the table; I had the best
        day of the year; it is finally spring; I finished the race in first place; my painting won a prize; we moved
        into our new home; we got married; my brother came back from his long trip; the children made me breakfast; my
        friends sang for me; the weekend is here; I was given a medal; our first holiday together was perfect; the
        kittens are playing in the sun; our daughter was born this morning; my mother is out of hospital; I kissed her
        for the first time; we raised our glasses to the bride; my garden won the first prize; the summer holidays
        begin tomorrow; I scored two goals; my boss praised me in front of them all; grandma baked apple pie for us; my
        dog jumped into my arms; we sang around the fire; I got a hug from my little girl; the baby laughed at me; my
        dream house is ours now; the choir got a standing ovation; we had a picnic by the lake; my sister and I made up
        again; the snow is perfect and we have sledges; I finished my first marathon; my raise came through; the puppy
        learned his first trick; our café is full every day; I got flowers from a friend; the whole street danced at
        the festival; my team carried me on their shoulders; my test came back without a mistake; we celebrated our
        golden wedding; the roses are in bloom; I found a friend for life; they named the baby after me"""),
    "fear": _split("""there is someone in the house; I heard footsteps behind me; a big dog ran at me; the lights went
        out; the lift stopped between two floors; a man has been following me; I have to go down into the dark cellar;
        the plane began to shake; I woke from a nightmare; there is a snake in my tent; the storm is coming closer; I
        saw a shadow at the window; the ice began to crack under me; the car would not stop; I can not swim; I have to
        walk home alone at night; something growled in the bushes; the doctor wants to operate tomorrow; I smell smoke
        in the hall; he has a knife; the ground started to shake; the door opened by itself at midnight; the edge of
        the cliff was right before me; I heard a scream in the night; the water is rising fast; a spider ran over my
        hand; someone is banging on the door; we are lost in the forest; the bull turned and ran at us; they threatened
        to hurt me; the brakes failed on the hill; I am all alone in the old house; the thunder is so loud; I have to
        speak to them all; the boat is taking in water; the ladder began to slip; wolves were howling near the camp; a
        stranger grabbed my arm; the phone rang at three in the night; the test results come tomorrow; a burglar broke
        the window; the bear came towards our tent; a ghost story kept me awake; the elevator fell and stopped; there
        are flames on the stairs; an earthquake shook the town; my child is on the roof; a shark swam under our boat;
        the dentist picked up the drill; a rat ran over my feet; the flood has reached our door; somebody cut the phone
        line; I hear breathing behind the wall; the crocodile opened its mouth; the bridge sways in the storm; a gun
        was lying on the table; lightning struck the tree next to us; he followed me to my car; the operation is in an
        hour; I have to jump from the tower; the nurse said that it is serious; a bomb was found in our street; the
        tiger is out of its cage; I lost my child in the crowd; my name was written on the wall in red; the engine of
        the plane is on fire; a bat is in my bedroom; the mask in the attic moved; the gang waits for me after school;
        the disease is in our town now"""),
    "surprise": _split("""my quiet uncle bought a motorbike; it snowed in the middle of July; I found money in my old
        coat; the shy boy won the singing contest; my cat learned to open the fridge; the magician pulled out my own
        watch; my boss came to work in a clown suit; I met my old teacher on a mountain; the small team beat the
        champions; they all jumped out and shouted my name; the empty box had a rabbit in it; my neighbour is secretly
        a prince; the price was half of what I thought; the parrot said my name; I have a twin that I never knew about;
        a letter arrived after thirty years; the old painting was worth a million; the bus driver started to sing
        opera; the answer was the opposite of what I thought; my grandmother speaks fluent Chinese; the wall was a
        secret door; the movie ended in a way that nobody guessed; my phone turned up in the freezer; the bill was
        already paid; a deer walked into our shop; he told me that he is a spy; the clock ran backwards; the egg had
        two yolks; my brother suddenly stood at the door; the stranger knew my name; the statue moved; it was all a
        joke; the package was full of feathers; she had dyed her hair green; the judge gave us all the points; the
        twins had swapped places; our dog can ride a skateboard; the fish was as long as my car; they changed the plan
        at the last second; my old toy was on television; my dog answered the phone; a stranger gave me a house; the
        mouse chased the cat; my sister came home with a camel; the last runner won the race; it turns out we are
        cousins; the teacher did a handstand in class; a piano stood in the middle of the road; my shoes were in the
        oven; there was a second door behind the door; the king drove our taxi; a parcel came that nobody ordered; the
        cake was made of soap; our cook is a famous singer; the letter was from myself; the old lady beat the boxer;
        the rabbit vanished from the hat; we have the same birthday; the desert was full of flowers; my pen friend is
        my neighbour; the sea was gone in the morning; the thief brought everything back; the frog on the table winked
        at me; the whole class had left; they gave the award to me of all people; the tiny box held a huge tent; my
        hair turned blue overnight; the test had no questions; a cow sat in my office; the map showed our own garden
        """),
}

REACTIONS: dict[str, tuple[str, ...]] = {
    "sadness": _split("""I cried all night; I can not stop crying; tears run down my face; my heart is broken; I feel
        empty; I feel so lonely; nothing makes me smile any more; I just want to stay in bed; I miss her so much; I am
        heartbroken; I feel so sad; I am miserable; it hurts so much; I wept like a child; everything feels grey; I
        feel lost without him; I am so unhappy; I sit in the dark and cry; my heart is heavy; I have no hope left; I am
        full of sorrow; I feel down; it breaks my heart; I sobbed into my pillow; I do not want to see anyone; I could
        only cry; I feel terrible about it; I weep for her; I feel worthless; my eyes are red from crying; I am
        crushed; everything reminds me of him; I mourn him; I long for the old days; the pain does not go away; I am so
        alone; what a terrible loss; I am devastated; I feel hopeless; I sighed deeply; my tears will not stop"""),
    "joy": _split("""I am so happy; I can not stop smiling; I could sing all day; my heart is full; I am over the moon;
        I feel wonderful; I laughed until my sides hurt; I want to hug the whole world; I am so proud; life is
        beautiful; this is the best day of my life; I am so glad; I jumped up and down; I danced in the kitchen; I feel
        great; we laughed and sang; I feel so lucky; I am delighted; what a lovely day; I love it so much; we all
        cheered; I am so grateful; I have never been happier; everything is going well; I am full of energy; we had so
        much fun; I grin from ear to ear; it is wonderful; I feel so loved; hooray; I whistled the whole way; I am
        thrilled; it was pure bliss; I beam with pride; what a delight; I feel warm inside; we clapped and cheered; I
        am overjoyed; it was so much fun; I could kiss everyone"""),
    "fear": _split("""I am so scared; I am shaking all over; I do not dare to move; my heart is pounding; I want to run
        away; I can not breathe; I am terrified; my hands tremble; I hid under the bed; I locked every door; I can not
        sleep; I froze; I screamed for help; I am afraid to look; I feel sick with worry; cold sweat runs down my back;
        I am afraid; please do not leave me alone; I keep the light on; I am too nervous to eat; my legs would not
        move; I began to panic; I do not feel safe; I hold my breath; I am frightened to death; I fear that it will
        come back; I shiver with fear; I dread the night; I panicked; my blood froze; help me; I turned pale; I ran for
        my life; I cower in the corner; I am worried sick; I shrieked; I pray that it goes away; it is so creepy; every
        noise makes me jump; we are in danger"""),
    "surprise": _split("""I can not believe it; I did not expect that at all; wow; I never saw that coming; I was
        speechless; my jaw dropped; I had to look twice; no way; I am still amazed; who would have thought; I was so
        surprised; I stared with my mouth open; I had no idea; that was unexpected; I ask myself how that is possible;
        I am stunned; I could hardly believe my eyes; you will never guess what happened; it came out of nowhere; I was
        astonished; I was completely caught off guard; I blinked and looked again; nobody told me; I gasped; I had no
        words; it was the last thing on my mind; it left me baffled; what on earth; I am puzzled; it is unbelievable;
        how strange; I am lost for words; what a twist; how odd; my eyebrows went up; it is a mystery to me; I was
        taken aback; it is incredible; what a coincidence; I am bewildered"""),
}

_JOINS = ("{e}, and {r}", "{e} and {r}", "{r} because {e}", "{e}, so {r}", "{e}. {R}", "{R}. {E}", "{e}! {R}")
_ALONE = ("{c}", "today {c}", "listen, {c}", "oh, {c}", "{c}", "you know, {c}")


def training_phrases(label: str, count: int, rng: random.Random) -> list[str]:
    """Return `count` different phrases for one label: single clauses, and an event joined with a reaction."""
    events, reactions = EVENTS[label], REACTIONS[label]
    single = [finish(rng.choice(_ALONE).format(c=clause), rng) for clause in (*events, *reactions) for _ in range(2)]
    pairs = list(product(events, reactions))
    rng.shuffle(pairs)
    joins = (
        _JOINS if label != "surprise" else tuple(join for join in _JOINS if "because" not in join and "so" not in join)
    )
    joined = [
        finish(rng.choice(joins).format(e=e, r=r, E=e[0].upper() + e[1:], R=r[0].upper() + r[1:]), rng)
        for e, r in pairs
    ]
    return list(dict.fromkeys((*single, *joined)))[:count]


def finish(text: str, rng: random.Random) -> str:
    """Give a phrase its first capital and its end mark; a few stay as carelessly typed as people type."""
    if rng.random() < 0.08:
        return text.lower()
    return text[0].upper() + text[1:] + rng.choice((".", ".", ".", "!", ""))


def word_sequences(phrases: Iterable[str], length: int) -> set[tuple[str, ...]]:
    """All sequences of `length` words in the phrases, without case and punctuation."""
    found: set[tuple[str, ...]] = set()
    for phrase in phrases:
        words = "".join(c for c in phrase.lower() if c.isalnum() or c in " '").split()
        found.update(tuple(words[i : i + length]) for i in range(len(words) - length + 1))
    return found
