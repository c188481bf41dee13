"""Cutting a text so that what it is a part of has so many tokens."""

from collections.abc import Callable

from mc_jax.data.tokenizers import Tokenizer

# Characters around a cut that are counted with it: some words, for a tokenizer looks no further.
_AROUND = 64
# Characters to both sides of the best guess that are tried: a single one may change nothing, or two
# tokens at once.
_NEAR = 48


def fit(
    tokenizer: Tokenizer,
    whole: Callable[[int], str],
    part: Callable[[int, int], str],
    wanted: int,
    guess: int,
    rate: float,
) -> int:
    """Returns the characters for which a text has `wanted` tokens, or nearly so.

    A long text is counted as a whole a few times only; then just around the cut.

    Args:
      tokenizer: what counts.
      whole: the text with so many characters.
      part: of the text with n characters what is left of it around the cut when the k characters
        farthest from the cut are left out; arguments n and k.
      wanted: tokens of `whole`.
      guess: where to begin.
      rate: characters of a token, on average.
    """
    characters = guess
    missing = wanted - len(tokenizer.encode(whole(characters)))
    for _ in range(8):
        if abs(missing) <= 8:
            break
        characters = max(0, characters + round(missing * rate))
        missing = wanted - len(tokenizer.encode(whole(characters)))
    aim = max(0, characters + round(missing * rate))
    left_out = max(0, min(aim, characters) - _NEAR - _AROUND)
    counted = len(tokenizer.encode(part(characters, left_out)))
    best, least = characters, abs(missing)
    for step in range(2 * _NEAR + 1):
        if not least:
            break
        near = aim + (step + 1) // 2 * (1 if step % 2 else -1)
        if near >= 0:
            off = abs(missing + counted - len(tokenizer.encode(part(near, left_out))))
            best, least = (near, off) if off < least else (best, least)
    return best
