"""Recipes: the schema, the text with its line numbers, and the checks against the installed components.

Imports `registry` and below.
"""
