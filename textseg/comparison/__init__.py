"""Leaderboards: runs side by side, with intervals and tests.

Imports `drawing`, `metrics`, `runs` and below.
"""
