"""Model architectures: what an experiment may say of them, their shapes, and their analytical costs."""
