"""Evaluation: scores of predictions against reference masks, and a probe of their dependence on the text.

May import `inference` and the packages below it. It writes no HTML. Offers plug-ins nothing; start with `evaluate.py`.
"""
