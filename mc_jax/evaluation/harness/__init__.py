"""The LM evaluation harness (lm-eval): an adapter for it, and the tasks of the paper's tables.

Importing this registers the model `mc_jax` with lm-eval:

    import lm_eval
    import mc_jax.evaluation.harness

    lm_eval.simple_evaluate(model="mc_jax", model_args="workdir=runs/x", tasks=["piqa"])
"""

from mc_jax.errors import InputError

try:
    import lm_eval.api  # noqa: F401 (only to see that it is there)
except ImportError as error:
    missing = str(error.name).partition(".")[0]
    allowed = "what requirements-eval.txt installs (pip install -r requirements-eval.txt)"
    raise InputError("lm_eval", f"no module {missing}", allowed) from None

from mc_jax.evaluation.harness.adapter import MCJaxLM

__all__ = ["MCJaxLM"]
