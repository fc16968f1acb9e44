"""Pages and figures for people: the report of a run, prompts, figures of papers, costs.

Imports `evaluation`, `drawing` and below.
"""
