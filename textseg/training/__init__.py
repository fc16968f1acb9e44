"""Training: a run from its recipe to its report, the loop, checkpoints, processes and loggers.

Imports `reports`, `comparison`, `evaluation` and below. It alone needs Lightning.
"""
