"""Pictures, charts, tables and HTML pages, drawn from given arrays and numbers.

May import `runs` and the packages below it. It computes no score and runs no model. Offers plug-ins nothing.
"""
