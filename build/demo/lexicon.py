"""Words of feeling: nouns, verbs, adjectives and shouts, in the order of `feelings.FEELINGS`.

Words that belong together are joined by hyphens here.
"""

from __future__ import annotations

from typing import NamedTuple

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


class Verb(NamedTuple):
    """One verb, as in `she wept`, `I saw her weeping` and `she weeps`."""

    past: str
    going_on: str
    present: str


class Cues(NamedTuple):
    """The words of one feeling."""

    nouns: list[str]
    verbs: list[Verb]
    adjectives: list[str]
    shouts: list[str]


def _phrases(text: str) -> list[str]:
    return [word.replace("-", " ") for word in text.split()]


CUES = [
    Cues(
        _phrases(nouns),
        [Verb(*_phrases(forms.replace("/", " "))) for forms in verbs.split()],
        _phrases(adjectives),
        [" ".join(shout.split()) for shout in shouts.split(";")],
    )
    for nouns, verbs, adjectives, shouts in zip(_NOUNS, _VERBS, _ADJECTIVES, _SHOUTS, strict=True)
]
