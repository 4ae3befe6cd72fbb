"""Training of matched models: the same tokens, recipe and tuning for each, resumed exactly from wherever it stopped."""
