"""Glossary of dimensions and the array aliases used across the package.

Dimension names in jaxtyping annotations and shape-letter suffixes:

  ==========  ======  ====================================================
  name        letter  meaning
  ==========  ======  ====================================================
  batch       B       sequences
  length      L       tokens of one call
  heads       H       independent memories of one layer
  head_dim    D       width of a head's queries, keys and values
  hidden      F       width of an MLP memory's hidden layer
  segments    S       caching intervals that a call touches
  chunks      C       inner parallel blocks of one segment
  chunk       T       tokens of one chunk
  memories    N       cached memories that can be read
  window      W       tokens that a sliding-window write looks back on
  vocab       V       vocabulary
  ==========  ======  ====================================================

Terms: a *segment* is the interval at whose end a memory is cached, a *chunk* the block of tokens
that is compressed in parallel, the *state* the running recurrence, a *memory* what is cached and
read, the *cache* the stored memories with their descriptors, a *descriptor* the mean key (or
value) of a segment, and the *gate* the weights with which a token reads its memories.
"""

from jaxtyping import Array, Bool, Float, Int, PyTree

__all__ = ["Array", "Bool", "Float", "Int", "PyTree"]
