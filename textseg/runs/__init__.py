"""Runs: the experiment that is built from a recipe, and the run folder with its files.

May import `data` and the packages below it. Offers plug-ins nothing; start with `experiment.py` and `folder.py`.
"""
