"""Training of matched models: the same tokens, recipe and tuning for each, resumed exactly after an interruption."""
