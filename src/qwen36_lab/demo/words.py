"""The words that the demo's texts are made of, by what they name."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from qwen36_neuron.checkpoint.corpus import WORDS

INVENTED_SHARE = 0.2
"""How often a word outside the lists stands in for one of them, so that answers are read and not guessed."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _pairs(text: str) -> tuple[tuple[str, str], ...]:
    return tuple((left, right) for left, _, right in (pair.partition("/") for pair in text.split()))


ADJECTIVES = _words(
    """
    amber ancient azure black blue brass bright broken bronze brown calm clear cold copper coral crimson crystal
    curved dark deep distant dry dusty early eastern empty fast fine flat frozen gentle glass golden gray green
    heavy hidden high hollow icy iron ivory jade large late light little lonely long lost low marble narrow new
    northern oak old olive open orange pale paper pink plain polished proud purple quick quiet rapid red rough
    round royal ruby rusty salty sharp short silent silver simple slow small smooth soft solid southern square
    steel stone strong sunny sweet tall thin tiny violet warm western white wide wild winter wooden yellow young
    """
)
NOUNS = _words(
    """
    anchor apple arrow basket bell bicycle boat book bottle bowl box bridge bucket cabin cable camera candle
    canoe carpet castle chain chair clock cloud coat coin compass cup curtain desk door drawer drum engine
    feather fence fiddle flag flute forest fork fountain garden gate glove hammer harbor hat helmet hill horn
    house island jacket jar journal kettle key kite ladder lake lamp lantern letter library lighthouse locker
    map market meadow mill mirror mountain needle notebook orchard oven package painting pencil piano pillow
    pipe pond radio river road robot rope saddle school scarf shelf ship shoe spoon stable station statue stove
    table tent ticket tower train tree trumpet tunnel umbrella valley vase vault violin wagon wall watch well
    wheel whistle window workshop
    """
)
NAMES = _words(
    """
    Ada Alan Alice Amir Anna Ben Boris Carla Carlos Chen Clara Daniel David Diana Elena Emil Emma Eva Felix
    Fatima Frank Grace Greta Hana Hugo Ida Igor Ines Ivan Jack Jane Jonas Julia Kai Karl Kira Lars Laura Leo
    Lily Linda Lucas Maria Marco Martin Maya Mina Nadia Nina Noah Olga Oscar Otto Paul Petra Priya Quinn Ravi
    Rita Robert Rosa Samir Sara Simon Sofia Stefan Tara Theo Tom Uma Vera Victor Wanda Yara Yuki Zara Zoe
    """
)
CITIES = _words(
    """
    Accra Amsterdam Athens Bangkok Barcelona Berlin Bogota Boston Brussels Cairo Chicago Copenhagen Delhi Dublin
    Geneva Hamburg Hanoi Havana Helsinki Istanbul Kyoto Lagos Lima Lisbon London Madrid Manila Milan Montreal
    Moscow Mumbai Munich Nairobi Naples Oslo Paris Porto Prague Quito Riga Rome Seattle Seoul Sofia Stockholm
    Sydney Tokyo Toronto Tunis Vienna Vilnius Warsaw Zurich
    """
)
COLORS = _words(
    """
    black blue brown gold gray green orange pink purple red silver violet white yellow
    """
)
ANIMALS = _words(
    """
    badger bear beaver bird cat cow crab crow deer dog dolphin donkey dragon duck eagle elephant fish fox frog
    goat goose hare hedgehog hen heron horse lamb lion lizard mole monkey mouse otter owl panda parrot penguin
    pig rabbit raven robin seal sheep snail snake sparrow spider squirrel swan tiger toad turtle whale wolf
    zebra
    """
)
FOODS = _words(
    """
    apples bananas beans berries bread butter cakes carrots cheese cherries coffee cookies corn eggs flour
    grapes honey lemons milk mushrooms nuts onions oranges pasta peaches pears peas plums potatoes rice salt
    soup spinach sugar tea tomatoes walnuts yogurt
    """
)
JOBS = _words(
    """
    actor architect artist baker barber builder captain carpenter chemist clerk cook dancer dentist doctor
    driver editor engineer farmer fisher gardener judge lawyer librarian mechanic miner musician nurse painter
    pilot plumber poet postman sailor scientist singer soldier surgeon tailor teacher waiter weaver writer
    """
)
CODE_WORDS = _words(
    """
    acorn alpha anvil aspen atlas aurora beacon birch blaze breeze cedar cipher cobalt comet condor cosmos dawn
    delta dune echo ember falcon fern flint gamma glacier granite harvest hazel indigo jasper juniper karma
    kestrel lagoon lotus lunar maple meteor mosaic nectar nimbus nova oasis onyx opal orbit orchid osprey pepper
    phoenix pine pixel plasma prism quartz quasar raven river saffron sage sierra solar spark summit tango
    tempest thunder topaz tulip tundra umber velvet vertex willow zephyr zenith
    """
)
MONTHS = _words(
    """
    January February March April May June July August September October November December
    """
)
DAYS = _words(
    """
    Monday Tuesday Wednesday Thursday Friday Saturday Sunday
    """
)
NUMBERS = _words(
    """
    zero one two three four five six seven eight nine ten eleven twelve
    """
)
OPPOSITES = _pairs(
    """
    big/small hot/cold up/down left/right day/night fast/slow old/new open/closed early/late high/low long/short
    light/dark loud/quiet full/empty wet/dry strong/weak happy/sad rich/poor hard/soft thick/thin wide/narrow
    deep/shallow clean/dirty right/wrong easy/difficult north/south east/west first/last true/false heavy/light
    sharp/blunt rough/smooth inside/outside above/below begin/end buy/sell give/take win/lose push/pull
    love/hate friend/enemy question/answer start/stop summer/winter
    """
)
CAPITALS = _pairs(
    """
    France/Paris Germany/Berlin Italy/Rome Spain/Madrid Portugal/Lisbon Austria/Vienna Poland/Warsaw
    Greece/Athens Norway/Oslo Sweden/Stockholm Finland/Helsinki Denmark/Copenhagen Ireland/Dublin
    Belgium/Brussels Japan/Tokyo China/Beijing Thailand/Bangkok Vietnam/Hanoi Egypt/Cairo Kenya/Nairobi
    Ghana/Accra Tunisia/Tunis Cuba/Havana Peru/Lima Ecuador/Quito Colombia/Bogota Canada/Ottawa Latvia/Riga
    Lithuania/Vilnius Hungary/Budapest Turkey/Ankara Russia/Moscow
    """
)
GROUPS = {
    "fruit": _words("apple banana cherry grape lemon mango orange peach pear plum"),
    "animal": _words("bear cat dog fox goat horse lion mouse tiger wolf"),
    "color": _words("black blue brown green orange pink purple red white yellow"),
    "tool": _words("axe brush drill file hammer ladder needle rope saw spade"),
    "vehicle": _words("bicycle boat bus canoe car plane ship tractor train truck"),
    "instrument": _words("cello drum flute guitar harp horn organ piano trumpet violin"),
}


def invented(random: Random) -> str:
    """A word that need not exist."""
    if random.random() < 0.15:
        return "".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(3, 7)))
    word = "".join(random.choice("bcdfghjklmnprstvwz") + random.choice("aeiou") for _ in range(random.randint(1, 3)))
    return word + random.choice(("", "l", "n", "r", "s", "x", "nd", "sta"))


def pick(random: Random, pool: Sequence[str]) -> str:
    """A word of the pool, or now and then one from outside it, capitalised as the pool is."""
    if random.random() >= INVENTED_SHARE:
        return random.choice(pool)
    word = random.choice(WORDS) if random.random() < 0.4 else invented(random)
    return word.capitalize() if pool[0][0].isupper() else word
