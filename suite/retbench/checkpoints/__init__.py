"""Weights on disk: our own checkpoints and the public formats, read into one `Decoder` and written atomically.

`reading.read_checkpoint` says what a checkpoint is, without torch; `loading.load_checkpoint` makes the model of it;
`saving.save_checkpoint` writes one. A format is one module: what its configuration means, and where its weights go.
"""
