"""Recipes: the schema, YAML with line numbers, and checks against the installed components.

May import `registry` and the packages below it. Offers plug-ins nothing; start with `loading.py`.
"""
