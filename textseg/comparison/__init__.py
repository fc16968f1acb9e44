"""Leaderboards: a check that runs are comparable, means with intervals and tests, and the output formats.

May import `evaluation`, `export` and the packages below them. Offers plug-ins nothing; start with `compare.py`.
"""
