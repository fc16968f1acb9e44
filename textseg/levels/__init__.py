"""Levels of an ordered atlas in a label map: which pieces there are, and what they should be called.

Imports `volumes` and below. It works on arrays and needs no torch.
"""
