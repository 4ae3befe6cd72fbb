"""Names of the outcomes that a worker finds about products in float32 on a CPU."""

ROW_OUTCOMES = (
    "attention_from, float32",
    "attention_from, shared, float32",
    "slice_width",
    "batches",
    "onednn_rows",
    "onednn_prompts",
)
"""The names of the outcomes; 0 for each leaves all products to torch."""
