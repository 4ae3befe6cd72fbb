"""Compare the cost model with this CPU: predicted and measured times of decode steps of every architecture.

A prediction consists of analytical costs and of the rates of operators (`retbench.planning.step_rates`); no step of a
model enters it. Run nothing else meanwhile.
"""
