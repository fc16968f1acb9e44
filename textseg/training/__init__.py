"""From a recipe to trained weights: the run, the loop, its checkpoints, processes and logs.

Imports `reports`, `comparison`, `evaluation` and below. It alone needs Lightning.
"""
