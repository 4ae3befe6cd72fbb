"""Models: a decoder over any mixers, its state, generation, and the equivalence check.

Letters of tensor shapes, the same in the whole package: B batch, T query positions, S key positions, C chunk,
H heads, K width of a key head, V width of a value head, D model width, F feed-forward width, N vocabulary.
"""
