"""How tests compile."""

import jax

# Tracing and compiling are nearly all that these tests cost: each program runs a few times only.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
if jax.__version_info__ < (0, 11):
    # Three times faster still; the option went with jax 0.11.
    QUICK |= {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}


def quick_jit(function):
    """jax.jit that compiles quickly and optimises little."""
    return jax.jit(function, compiler_options=QUICK)
