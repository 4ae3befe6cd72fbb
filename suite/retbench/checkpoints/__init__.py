"""Checkpoints on disk: retbench's own format and public formats, read into one `Decoder`, and written atomically.

`reading.read_checkpoint` describes a checkpoint without importing torch, `loading.load_checkpoint` builds its model,
and `native.save_checkpoint` writes one. Each format is one module: its configuration, and the names of its weights.
"""
