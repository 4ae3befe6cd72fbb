"""retbench's zero-shot scores compared with lm-eval's HFLM on the same weights and documents; then both are timed.

    python -m benchmarks.eval --list

`hf_lm` gives HFLM a model with our weights and our tokenizer; `agreement` compares answers document by document,
`speed` the time. The task files and the trained model are read from the folder of RETBENCH_DATA.
"""
