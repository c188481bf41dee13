"""How long a request may be, and what happens to one that is longer."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from mc_jax.data.tokenizers import Tokenizer
from mc_jax.errors import InputError

REFUSE, LEFT = "refuse", "left"
TOO_LONG = (REFUSE, LEFT)


class Limit(NamedTuple):
    """The longest context.

    Attributes:
      max_length: tokens that the model reads at most, generated ones among them.
      too_long: what happens to a request that takes more: "refuse", or "left", which cuts its
        context from the left.
    """

    max_length: int
    too_long: str = REFUSE

    def check(self) -> None:
        """Refuse settings that are none.

        Raises:
          InputError: naming the setting.
        """
        if self.max_length < 2:
            raise InputError("--max_length", self.max_length, "an integer >= 2")
        if self.too_long not in TOO_LONG:
            raise InputError("--too_long", self.too_long, " | ".join(TOO_LONG))

    def context(self, context: int, more: int) -> int:
        """Tokens of a context that are kept.

        Args:
          context: its tokens.
          more: tokens that are read after it.

        Raises:
          InputError: no room for one of them, or not for all and nothing is to be cut.
        """
        if self.too_long == REFUSE:
            self._refuse(context + more)
        if more >= self.max_length:
            allowed = f"at least {more + 1}, for the tokens of an answer and one before them"
            raise InputError("--max_length", self.max_length, allowed)
        return min(context, self.max_length - more)

    def check_requests(self, instances: Iterable[Any], tokenizer: Tokenizer) -> None:
        """Refuse requests that are too long, before anything is computed.

        Args:
          instances: lm-eval's.
          tokenizer: the model's.

        Raises:
          InputError: with the tokens that the longest one takes.
        """
        if self.too_long == LEFT:
            return
        longest = 0
        for instance in instances:
            if instance.request_type == "loglikelihood":
                # The last token is predicted and not read; one stands for a context that is none.
                text, more = "".join(instance.args), -1 if instance.args[0] else 0
            elif instance.request_type == "generate_until":
                text, more = instance.args[0], max_new_tokens(instance.args[1])
            else:  # rolling windows fit by themselves
                continue
            # No token stands for less than a byte, so that few texts have to be counted.
            if len(text.encode()) + more > max(longest, self.max_length):
                longest = max(longest, len(tokenizer.encode(text)) + more)
        self._refuse(longest)

    def _refuse(self, longest: int) -> None:
        if longest > self.max_length:
            allowed = (
                f"at least {longest}, the tokens of the longest request; or --too_long=left, which "
                "cuts contexts that are too long from the left"
            )
            raise InputError("--max_length", self.max_length, allowed)


def max_new_tokens(generation: dict[str, Any]) -> int:
    """What lm-eval's generation arguments say of the tokens to be generated; 256 by default."""
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    return int(next((generation[n] for n in names if generation.get(n) is not None), 256))
