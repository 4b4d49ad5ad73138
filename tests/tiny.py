"""A problem that takes no time, of which there are many runs."""

TINY = """
[model]
use = "hierarchical"
data = 3
[system]
use = "pgd"
particles = 2
theta = { h = 1e-3 }
x = { h = 1e-2 }
[run]
integrator = "euler_maruyama"
steps = 8
dtype = "float64"
[save]
every = 2
data = 3
"""
