"""Makes needles.json beside it: 512 pieces of the words of S-NIAH-1.

    python -m configs.tokenizers.needles

Of a prompt's 270 tokens 60 are its instructions, which are 350 of 1,000 bytes. Digits are pieces of
their own. Other text can be written in them too, at near a piece a byte.
"""

from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from mc_jax.data import haystack
from mc_jax.data import tokenizers as ours
from mc_jax.data.needles import Prompts

PIECES = 512
PROMPTS = 3000
BYTES = 1000  # of a prompt


def texts() -> Iterator[str]:
    """Prompts of training, with their answers."""
    prompts = Prompts(1, ours.load("bytes"), haystack.noise(), BYTES, PROMPTS, held_out=False)
    for sample in prompts:
        yield f"{sample.prompt} {sample.question.value}."


def make() -> Tokenizer:
    """Byte-pair encoding over bytes, as of GPT-2, but for the digits."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


if __name__ == "__main__":
    make().save(str(Path(__file__).with_suffix(".json")))
