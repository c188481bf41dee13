"""Causal attention by JAX's splash kernel, the best there is on a TPU."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu import splash_attention

from mc_jax.device import this_chip, too_little_vmem
from mc_jax.sharding import active_mesh, spec
from mc_jax.typing import Array, Float

LANES = 128
# Of tokens; the largest are the fastest on every generation, by `benchmarks.tpu_static`.
BLOCKS = (1024, 512, 256, 128)
# The largest for heads wider than 128 where there is little VMEM.
LARGEST_WIDE = 512


def splash(
    q: Float[Array, "batch length heads head_dim"],
    k: Float[Array, "batch length heads head_dim"],
    v: Float[Array, "batch length heads head_dim"],
    window: int | None,
    interpret: bool = False,
) -> Float[Array, "batch length heads head_dim"]:
    """Outputs of the tokens of sequences that start here, on every device of the active mesh.

    Args:
      q: queries.
      k: keys.
      v: values.
      window: how many tokens each sees, itself among them; None for all before it.
      interpret: run the kernel's steps on any device.
    """

    def attend(q: Array, k: Array, v: Array) -> Array:
        return _attend(q, k, v, window, interpret)

    mesh = active_mesh()
    if mesh is None:
        return attend(q, k, v)
    split = spec(mesh, ("batch", None, "heads", None), q.shape)
    # Kernels do not say which axes their outputs vary over.
    on_mesh = jax.shard_map(
        attend, mesh=mesh, in_specs=(split,) * 3, out_specs=split, check_vma=False
    )
    return on_mesh(q, k, v)


def _attend(q: Array, k: Array, v: Array, window: int | None, interpret: bool) -> Array:
    """See `splash`, on one device."""
    _, length, heads, head_dim = q.shape
    # Nobody sees tokens after the last, and features that are 0 add nothing.
    padding = [(0, 0), (0, -length % LANES), (0, 0), (0, -head_dim % LANES)]
    tokens = length + padding[1][1]
    narrow = head_dim <= LANES or too_little_vmem(this_chip()) is None
    largest = BLOCKS[0] if narrow else LARGEST_WIDE
    block = next(size for size in BLOCKS if tokens % size == 0 and size <= largest)
    mask: splash_attention.Mask = splash_attention.CausalMask((tokens, tokens))
    if window is not None:
        mask = splash_attention.LocalMask((tokens, tokens), (window - 1, 0), 0)
    sizes = splash_attention.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        use_fused_bwd_kernel=True,
    )
    attend = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * heads), block_sizes=sizes, interpret=interpret
    )

    def heads_first(x: Array) -> Array:
        return jnp.moveaxis(jnp.pad(x, padding), 2, 1)

    scale = np.asarray(head_dim**-0.5, q.dtype)
    y = jax.vmap(attend)(heads_first(q * scale), heads_first(k), heads_first(v))
    return jnp.moveaxis(y, 1, 2)[:, :length, :, :head_dim].astype(q.dtype)
