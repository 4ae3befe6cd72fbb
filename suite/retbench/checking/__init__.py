"""What a check measures itself: the exact quantities of a model, and two revisions of the code in one sitting.

What the numbers say is decided in `comparing`.
"""
