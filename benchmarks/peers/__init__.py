"""retbench's models compared with other projects': equal logits from equal weights; then both are timed alternately.

    python -m benchmarks.peers --list

One module per peer (`torchscale_retnet`, `hf_llama`, `yar_retnet`, `fla_retnet`) builds it and maps its weights to
ours. One module per topic (`forms`, `equality`, `decode`, `prefill`, `training`) holds the bars; `bars` lists them. A
bar that times something checks equality first, and reports no time if that fails.
"""
