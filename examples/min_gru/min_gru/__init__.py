"""minGRU (arXiv:2410.01201) for retbench, and a workload: an example of a package of one's own."""
