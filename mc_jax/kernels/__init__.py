"""Operations on memories that have kernels of their own, a folder each."""
