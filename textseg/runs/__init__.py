"""Runs: an experiment that is built from a recipe, and the folder that a run writes.

Imports `data`, `models` and below.
"""
