"""Pictures, charts, tables and pages, drawn from arrays and numbers that are given.

Imports `runs`, `metrics`, `volumes` and below; it computes no score and runs no model.
"""
