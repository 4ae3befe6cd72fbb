"""Names of the outcomes that a worker finds about products of few rows in float32 on a CPU."""

ROW_OUTCOMES = (
    "attention_from, float32",
    "attention_from, shared, float32",
    "slice_width",
    "batches",
    "onednn_rows",
)
"""The names of the outcomes; 0 for each leaves all products to torch."""
