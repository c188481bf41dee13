"""The pieces of configs/needles.py."""

from configs import needles
from configs.tokenizers.needles import make
from mc_jax import data
from mc_jax.data import haystack, tokenizers
from mc_jax.data.needles import Prompts


def test_the_file_is_what_its_script_makes():
    tokenizer = needles.get_config().data.tokenizer
    with open(tokenizer.removeprefix("hf:")) as file:
        assert file.read() == make().to_str(pretty=True)
    assert tokenizers.load(tokenizer).vocab_size == needles.get_config().model.vocab_size


def test_an_example_is_a_prompt_and_its_answer():
    config = needles.get_config().data
    tokenizer = data.tokenizer(config)
    example = data.eval_batches(config).parts[0][0]
    text = tokenizer.decode(example["inputs"])
    question = Prompts(1, tokenizer, haystack.noise(), config.length, 1).draw(0)[0]
    assert text.startswith(question.opening) and question.needle in text
    asked = example["weights"] > 0
    assert tokenizer.decode(example["targets"][asked]) == f" {question.value}."
    # A space, digits of their own, the full stop and the end.
    assert asked.sum() == 1 + 7 + 1 + 1
