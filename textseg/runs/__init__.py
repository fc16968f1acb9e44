"""An experiment that is built from a recipe, and the folder that a run leaves behind.

Imports `data`, `models` and below.
"""
