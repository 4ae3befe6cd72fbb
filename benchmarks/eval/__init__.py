"""retbench's zero-shot scores beside lm-eval's own HFLM: the same weights, the same questions, then both timed.

    python -m benchmarks.eval --list

`hf_lm` gives HFLM a model with our weights and our tokenizer; `agreement` compares answers document by document,
`speed` the time. The task files and the trained model are read from the folder of RETBENCH_DATA.
"""
