"""The cost model held against this CPU: predicted times of decode steps beside measured ones.

A prediction is made of parts that are timed apart from each other (`retbench.workloads.parts`); no step of the model is
in it. Run nothing else meanwhile.
"""
