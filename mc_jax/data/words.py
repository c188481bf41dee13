"""Keys of needles: words such as "quiet-lantern", an adjective and a noun.

The list is the project's own, so that a prompt depends on its seed and index alone and not on the
release of a package of words. A prompt holds one key, so a few thousand are enough.
"""

import numpy as np


def _words(text: str) -> list[str]:
    return text.split()


_ADJECTIVES = _words("""
    able aged amber ample arctic autumn basic bitter blank blunt bold brave brief bright brisk
    broad bronze calm careful cheap chilly civil clean clever cloudy coarse common coral cosy
    crisp curious curly damp daring deep dense dim distant dry dull dusty eager early easy elder
    empty equal even exact faint fair famous fancy fast fierce final fine firm flat fluffy fond
    formal fresh frosty full gentle giant glad golden grand green happy hasty heavy hollow honest
    humble icy idle jolly keen kind large late lazy lean level light lively local lonely loud
    lucky major mellow merry mild minor misty modern modest muddy narrow neat nimble noble odd
    open orange pale patient plain polite proud purple quick quiet rapid rare ripe rough round
    royal rural rusty salty sandy shy
""")
_NOUNS = _words("""
    acorn anchor apple arrow attic badge bakery balcony basket beach beacon bell bench berry
    blanket boat bottle branch bread bridge broom bucket button cabin camel candle canoe canyon
    carpet castle cellar chair cherry clock cloud coast coat comet compass copper corner cottage
    cradle crown curtain desert door dragon drum eagle engine falcon farm feather fence ferry
    field flag flute forest fountain garden gate glacier glove grape hammer harbor harp hat hill
    honey horse island jacket jungle kettle kite ladder lake lamp lantern leaf lemon library lion
    lizard marble market meadow mirror moon mountain museum needle nest oasis ocean olive orchard
    otter owl paddle palace paper parrot pebble pencil piano pillow planet pocket pond potato
    prairie puzzle rabbit rain ribbon river rocket saddle sail sparrow spoon station stone tiger
""")
_HELD_OUT = 8  # one in so many keys is never trained on


def draw_key(rng: np.random.Generator, held_out: bool) -> str:
    """Draws a key; those of evaluation and those of training have none in common."""
    adjective, turn = rng.integers(len(_ADJECTIVES)), rng.integers(len(_NOUNS) // _HELD_OUT)
    offset = 0 if held_out else rng.integers(1, _HELD_OUT)
    noun = (adjective + _HELD_OUT * turn + offset) % len(_NOUNS)
    return f"{_ADJECTIVES[adjective]}-{_NOUNS[noun]}"


def longest_key() -> str:
    """The key of the most letters."""
    return f"{max(_ADJECTIVES, key=len)}-{max(_NOUNS, key=len)}"
