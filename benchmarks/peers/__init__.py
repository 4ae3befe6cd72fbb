"""retbench's models beside other people's: the same weights, the same logits, then both timed in turn.

    python -m benchmarks.peers --list

One room a peer (`torchscale_retnet`, `hf_llama`, `yar_retnet`, `fla_retnet`) builds it and maps its weights to ours;
one room a question (`forms`, `equality`, `decode`, `prefill`, `training`) holds the bars; `bars` lists them.
A bar that times something proves equality first, and reports no time where that fails.
"""
