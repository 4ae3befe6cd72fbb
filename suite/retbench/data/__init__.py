"""Training and evaluation data: corpora, tokenizers, packed tokens and batches."""
