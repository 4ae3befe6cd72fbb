"""Language quality: what a model makes of text and of the zero-shot tasks.

`zeroshot.evaluate` scores a task with lm-eval's own prompts and metrics; `scoring` computes what requests share once.
"""
