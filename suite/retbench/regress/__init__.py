"""Two sides of one thing: whether the second is slower than the first, as faster as it claims, or the same.

Sees records and numbers; measures nothing and never imports torch. What gathers the numbers is in `checking`.
"""
