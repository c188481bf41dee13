"""The lm-eval adapter on several devices; run by tests/evaluation/harness/test_devices.py."""

import jax
import numpy as np
import pytest
from lm_eval.api.instance import Instance

from mc_jax import InputError
from mc_jax.data.tokenizers import ByteTokenizer
from mc_jax.evaluation.harness import MCJaxLM
from mc_jax.evaluation.harness.adapter import check_batch
from mc_jax.evaluation.harness.lengths import Limit
from mc_jax.evaluation.harness.subject import Subject
from mc_jax.inference import Sampling, generate
from tests.model import tiny


def test_devices_share_the_work():
    """Scores and texts are those of one device, in the order of the requests."""
    config = tiny.config(vocab_size=257)
    params = tiny.perturbed(config)
    tokenizer = ByteTokenizer()
    assert jax.device_count() == 2 and check_batch(None) == 8
    with pytest.raises(InputError, match="--batch_size: found 3; allowed: a positive multiple"):
        check_batch(3)
    lm = MCJaxLM.of(Subject(0, config, tokenizer, 64), params, Limit(64), 2)

    pairs = [("abcdefgh"[:i], " xyz"[: 1 + i % 3]) for i in range(1, 8)]
    asked = [Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)]
    found = lm.loglikelihood(asked, disable_tqdm=True)
    forward = tiny.forward(config)
    for (context, continuation), (value, _) in zip(pairs, found, strict=True):
        ids = np.array(list((context + continuation).encode()))
        padded = np.zeros((1, 12), np.int32)
        padded[0, : len(ids)] = ids
        logprobs = jax.nn.log_softmax(forward(params, padded)[0])
        places = np.arange(len(context) - 1, len(ids) - 1)
        assert value == pytest.approx(float(logprobs[places, ids[1:][places]].sum()), rel=1e-5)

    prompts = ["abcdefgh"[:i] for i in range(1, 6)]
    how = {"max_gen_toks": 8, "until": []}
    asked = [Instance("generate_until", {}, (prompt, how), i) for i, prompt in enumerate(prompts)]
    texts = lm.generate_until(asked, disable_tqdm=True)
    expected = generate(
        config, params, tokenizer, prompts, max_tokens=8, sampling=Sampling(temperature=0)
    )
    assert texts == [completion.text for completion in expected]
