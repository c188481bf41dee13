"""How memories are read: aggregation and segmentation, by the paper's name."""

READS = {
    "base": ("none", "constant"),
    "residual": ("residual", "constant"),
    "grm": ("grm", "constant"),
    "soup": ("soup", "constant"),
    "ssc": ("ssc", "constant"),
    "log-linear++": ("grm", "logarithmic"),
}
