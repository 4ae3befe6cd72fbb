"""Compare the cost model with this CPU: predicted and measured times of decode steps.

A prediction consists of parts that are timed separately (`retbench.workloads.parts`); it contains no step of the model.
Run nothing else meanwhile.
"""
