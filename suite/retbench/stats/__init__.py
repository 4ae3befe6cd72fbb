"""Statistics: confidence intervals, paired comparisons, sequential tests."""
