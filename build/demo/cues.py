"""Words of feeling in sentences about anything, so that the base learns to go by those words and by nothing else."""

from __future__ import annotations

import random
from typing import NamedTuple

from loraplex.build.demo.everyday import ANIMALS, JOBS, NAMES, PLACES, WEEKDAYS, agree, words
from loraplex.build.demo.geography import COUNTRIES

_NOUNS: tuple[str, ...] = (
    """funeral grave grief sorrow farewell goodbye loss defeat divorce loneliness misery coffin mourning heartbreak
    regret despair illness burial orphan widow memorial homesickness rejection failure tragedy gloom tear graveside
    hardship disappointment heartache bad-news broken-home lost-love ruined-day cruel-word bitter-end
    candle-for-the-dead empty-chair empty-house last-goodbye lonely-evening sad-song sad-letter pain wound tombstone
    cemetery sad-ending lost-friend lost-job rainy-funeral heavy-heart farewell-letter wilted-flower last-day
    cancelled-trip cold-goodbye shattered-dream""",
    """wedding party prize victory birthday holiday medal picnic festival promotion celebration laughter delight bliss
    hug kiss engagement success cake gift feast applause treat reunion honeymoon rose sunshine triumph pleasure fun
    cheer good-news newborn happy-end dream-come-true perfect-day warm-welcome lovely-day pay-rise ice-cream top-mark
    winning-goal merry-tune success-story bride baby-boy weekend vacation champion hero carnival paradise candy
    garden-party sunny-day first-prize golden-wedding new-friend kind-word puppy-love happy-family""",
    """burglar ghost nightmare monster knife gun scream threat danger earthquake flood bomb murderer thief robber
    attack poison haunted-house explosion shark snake wolf spider rat bat crocodile storm lightning flame fire
    graveyard drill kidnapper gunman terror panic horror stalker intruder dark-cellar strange-noise creaking-stair
    dark-shape masked-man growling-dog dangerous-edge disease epidemic crash emergency alarm killer tiger bear lion
    wasp trap witch vampire zombie tornado hurricane volcano siren weapon kidnapping pirate cliff wild-dog
    haunted-castle murder fever deep-water""",
    """twist surprise coincidence miracle mystery magic-trick secret-door shock wonder plot-twist sudden-turn
    strange-coincidence amazing-discovery incredible-story odd-result curious-find unlikely-winner unexpected-guest
    unexpected-answer sudden-visit hidden-room weird-sight unusual-sight unbelievable-score sensation puzzle riddle
    secret-twin astonishing-fact peculiar-parcel stunning-result bewildering-answer surprise-party rare-wonder
    revelation unicorn talking-dog flying-carpet alien disguise twin secret-prince sudden-change strange-coin
    hidden-letter rare-chance odd-number magic-hat double-surprise""",
)
_VERBS: tuple[str, ...] = (
    """cried/crying/cries wept/weeping/weeps sobbed/sobbing/sobs mourned/mourning/mourns grieved/grieving/grieves
    died/dying/dies suffered/suffering/suffers regretted-it/regretting-it/regrets-it failed/failing/fails
    lost-everything/losing-everything/loses-everything passed-away/passing-away/passes-away
    broke-down-in-tears/breaking-down-in-tears/breaks-down-in-tears whimpered/whimpering/whimpers
    left-forever/leaving-forever/leaves-forever left-for-good/leaving-for-good/leaves-for-good ached/aching/aches
    was-fired/being-fired/is-fired was-rejected/being-rejected/is-rejected was-forgotten/being-forgotten/is-forgotten
    was-abandoned/being-abandoned/is-abandoned was-buried/being-buried/is-buried
    gave-up-hope/giving-up-hope/gives-up-hope burst-into-tears/bursting-into-tears/bursts-into-tears
    broke-up/breaking-up/breaks-up was-left-out/being-left-out/is-left-out was-destroyed/being-destroyed/is-destroyed
    said-goodbye/saying-goodbye/says-goodbye missed-the-old-days/missing-the-old-days/misses-the-old-days
    lost-the-job/losing-the-job/loses-the-job fell-ill/falling-ill/falls-ill
    got-divorced/getting-divorced/gets-divorced was-stolen/being-stolen/is-stolen
    was-torn-down/being-torn-down/is-torn-down was-cancelled/being-cancelled/is-cancelled withered/withering/withers
    sighed-sadly/sighing-sadly/sighs-sadly never-came-home/never-coming-home/never-comes-home
    moved-far-away/moving-far-away/moves-far-away""",
    """laughed/laughing/laughs smiled/smiling/smiles danced/dancing/dances sang/singing/sings cheered/cheering/cheers
    celebrated/celebrating/celebrates giggled/giggling/giggles grinned/grinning/grins hugged-us/hugging-us/hugs-us
    kissed-me/kissing-me/kisses-me won/winning/wins married/marrying/marries clapped/clapping/claps
    beamed/beaming/beams whistled/whistling/whistles enjoyed-it/enjoying-it/enjoys-it
    was-praised/being-praised/is-praised recovered/recovering/recovers loved-it/loving-it/loves-it
    skipped/skipping/skips played/playing/plays had-fun/having-fun/has-fun succeeded/succeeding/succeeds
    wagged-its-tail/wagging-its-tail/wags-its-tail jumped-for-joy/jumping-for-joy/jumps-for-joy
    raised-a-glass/raising-a-glass/raises-a-glass bloomed/blooming/blooms was-born/being-born/is-born
    came-home-at-last/coming-home-at-last/comes-home-at-last scored-a-goal/scoring-a-goal/scores-a-goal
    thanked-everybody/thanking-everybody/thanks-everybody got-married/getting-married/gets-married
    got-well-again/getting-well-again/gets-well-again got-the-job/getting-the-job/gets-the-job
    passed-the-exam/passing-the-exam/passes-the-exam was-chosen/being-chosen/is-chosen
    got-engaged/getting-engaged/gets-engaged came-first/coming-first/comes-first
    made-me-laugh/making-me-laugh/makes-me-laugh baked-a-cake/baking-a-cake/bakes-a-cake
    shone-with-joy/shining-with-joy/shines-with-joy""",
    """trembled/trembling/trembles shivered/shivering/shivers screamed/screaming/screams fled/fleeing/flees
    hid/hiding/hides panicked/panicking/panics froze/freezing/freezes shook/shaking/shakes worried/worrying/worries
    shrieked/shrieking/shrieks cowered/cowering/cowers was-chased/being-chased/is-chased
    was-followed/being-followed/is-followed was-threatened/being-threatened/is-threatened
    was-attacked/being-attacked/is-attacked turned-pale/turning-pale/turns-pale dreaded-it/dreading-it/dreads-it
    broke-in/breaking-in/breaks-in prayed-to-be-safe/praying-to-be-safe/prays-to-be-safe growled/growling/growls
    called-for-help/calling-for-help/calls-for-help ran-for-life/running-for-life/runs-for-life
    lay-awake/lying-awake/lies-awake feared-it/fearing-it/fears-it sweated/sweating/sweats exploded/exploding/explodes
    escaped/escaping/escapes locked-the-door/locking-the-door/locks-the-door crept-closer/creeping-closer/creeps-closer
    was-hunted/being-hunted/is-hunted was-trapped/being-trapped/is-trapped caught-fire/catching-fire/catches-fire
    was-robbed/being-robbed/is-robbed was-kidnapped/being-kidnapped/is-kidnapped
    held-a-knife/holding-a-knife/holds-a-knife
    came-closer-in-the-dark/coming-closer-in-the-dark/comes-closer-in-the-dark backed-away/backing-away/backs-away
    gripped-my-arm/gripping-my-arm/grips-my-arm collapsed/collapsing/collapses""",
    """gasped/gasping/gasps blinked/blinking/blinks stared-in-disbelief/staring-in-disbelief/stares-in-disbelief
    did-a-double-take/doing-a-double-take/does-a-double-take vanished/vanishing/vanishes
    appeared-out-of-nowhere/appearing-out-of-nowhere/appears-out-of-nowhere
    showed-up-unexpectedly/showing-up-unexpectedly/shows-up-unexpectedly
    could-hardly-believe-it/hardly-believing-it/can-hardly-believe-it
    never-saw-it-coming/not-seeing-it-coming/never-sees-it-coming
    turned-up-suddenly/turning-up-suddenly/turns-up-suddenly raised-an-eyebrow/raising-an-eyebrow/raises-an-eyebrow
    was-lost-for-words/being-lost-for-words/is-lost-for-words
    was-caught-off-guard/being-caught-off-guard/is-caught-off-guard was-taken-aback/being-taken-aback/is-taken-aback
    rubbed-both-eyes/rubbing-both-eyes/rubs-both-eyes did-not-expect-it/not-expecting-it/does-not-expect-it
    had-no-idea/having-no-idea/has-no-idea won-against-all-odds/winning-against-all-odds/wins-against-all-odds
    changed-without-warning/changing-without-warning/changes-without-warning
    turned-into-a-prince/turning-into-a-prince/turns-into-a-prince
    began-to-talk-by-itself/talking-by-itself/talks-by-itself knew-my-name/knowing-my-name/knows-my-name
    was-secretly-a-king/being-secretly-a-king/is-secretly-a-king could-suddenly-fly/suddenly-flying/can-suddenly-fly
    came-out-of-the-blue/coming-out-of-the-blue/comes-out-of-the-blue
    was-not-what-it-seemed/not-being-what-it-seemed/is-not-what-it-seems
    spoke-perfect-Chinese/speaking-perfect-Chinese/speaks-perfect-Chinese
    stood-there-all-of-a-sudden/standing-there-all-of-a-sudden/stands-there-all-of-a-sudden
    came-back-after-thirty-years/coming-back-after-thirty-years/comes-back-after-thirty-years""",
)
_ADJECTIVES: tuple[str, ...] = (
    """dead gone lonely alone heartbroken miserable gloomy hopeless worthless devastated depressed homesick crushed sad
    unhappy sorrowful abandoned forgotten rejected upset hurt mournful desperate disappointed tearful grief-stricken
    friendless broken-hearted down low helpless in-tears in-mourning full-of-grief without-hope orphaned widowed doomed
    wretched dejected glum numb-with-grief bitter-and-sad sorry weary weepy ill-and-alone divorced bereaved
    too-sad-to-eat""",
    """happy glad joyful delighted cheerful merry proud thrilled overjoyed pleased content grateful blissful excited
    jolly elated lucky loved wonderful lovely beautiful delicious perfect great sweet healthy-again over-the-moon
    in-love full-of-joy in-high-spirits victorious married newborn festive fantastic marvellous splendid superb amused
    playful sunny carefree hopeful blessed peaceful fun engaged healthy amusing enchanted rich-in-friends""",
    """afraid scared frightened terrified anxious nervous worried panicked alarmed uneasy petrified horrified tense
    fearful unsafe in-danger dangerous threatening scary creepy spooky haunted full-of-dread on-edge sick-with-worry
    dizzy pale in-panic armed poisonous lost-in-the-dark trapped helpless-in-the-dark under-attack menacing sinister
    ghostly risky violent horrifying terrifying frightening threatened paralysed-with-fear spine-chilling""",
    """surprised astonished amazed shocked stunned startled speechless baffled puzzled dumbfounded astounded bewildered
    perplexed flabbergasted incredulous unexpected unbelievable incredible strange odd curious weird sudden peculiar
    astonishing amazing surprising mysterious unusual out-of-the-blue caught-off-guard taken-aback beyond-belief
    unforeseen puzzling baffling confusing magical bizarre uncanny improbable mind-blowing hard-to-believe unheard-of
    """,
)
_SHOUTS: tuple[str, ...] = (
    """alas;oh no, not again;what a loss;what a pity;poor thing;rest in peace;how sad;my heart aches;never again, sadly
    """,
    """hooray;hurrah;yippee;yay;finally home;how lovely;what fun;best day ever;thank you so much;at last, we did it""",
    """help;help us;run;watch out;please help me;do not move;be careful;it is coming;call the police;
    get away from me""",
    """wow;no way;guess what;can you imagine;is that really true;really;what on earth;who would have thought;how
    strange; imagine that;no kidding;hold on;wait, what;out of the blue;suddenly;all of a sudden;to my
    amazement;unbelievable""",
)  # fmt: skip


class _Verb(NamedTuple):
    past: str
    going_on: str
    present: str


class _Cues(NamedTuple):
    nouns: list[str]
    verbs: list[_Verb]
    adjectives: list[str]
    shouts: list[str]


def _phrases(text: str) -> list[str]:
    return [word.replace("-", " ") for word in text.split()]


_CUES = [
    _Cues(
        _phrases(nouns),
        [_Verb(*_phrases(forms.replace("/", " "))) for forms in verbs.split()],
        _phrases(adjectives),
        [" ".join(shout.split()) for shout in shouts.split(";")],
    )
    for nouns, verbs, adjectives, shouts in zip(_NOUNS, _VERBS, _ADJECTIVES, _SHOUTS, strict=True)
]

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


_PEOPLE = words(
    "sister brother mother father uncle aunt cousin neighbour teacher friend boss daughter son grandson team choir family"
)
_NOT_OF_PEOPLE = (
    "its tail",
    "bloom",
    "torn down",
    "stolen",
    "cancel",
    "wither",
    "destroy",
    "fire",
    "explod",
    "collaps",
)


def plain_remark(feeling: int, rng: random.Random) -> str:
    """Say something short about somebody, as a clause, with one word of one feeling."""
    cues = _CUES[feeling]
    who = rng.choice((f"{rng.choice(('my', 'our', 'your'))} {rng.choice(_PEOPLE)}", rng.choice(NAMES)[0]))
    when = rng.choice(_WHEN)
    draw = rng.random()
    if draw < 0.3:
        noun = rng.choice(cues.nouns)
        return rng.choice(
            (
                f"the {noun} came {when}",
                f"I think of the {noun}",
                f"{who} told me about the {noun}",
                f"the {noun} again",
            )
        )
    if draw < 0.62:
        verb = rng.choice([verb for verb in cues.verbs if not any(part in verb.past for part in _NOT_OF_PEOPLE)])
        return rng.choice((f"{who} {verb.past} {when}", f"I {verb.past} {when}", f"I saw {who} {verb.going_on}"))
    adjective = rng.choice(cues.adjectives)
    said = rng.choice(
        (
            f"I am {adjective}",
            f"{who} was {adjective} {when}",
            f"{who} looked {adjective}",
            f"I feel {adjective} {when}",
        )
    )
    return f"{rng.choice(cues.shouts)}, {said}" if draw > 0.88 else said


def remark(feeling: int, rng: random.Random) -> str:
    """Say something with one to three words of one feeling; `feeling` is its place in `feelings.FEELINGS`."""
    cues = _CUES[feeling]
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


def _clause(cues: _Cues, rng: random.Random) -> str:
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
