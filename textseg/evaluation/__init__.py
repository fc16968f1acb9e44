"""Scores of predictions on reference masks, and how they depend on the text.

Imports `inference`, `metrics` and below; it writes no page.
"""
