"""Levels of the spine in a label map: scores of their names, and a repair of names that are out of order.

May import `recipe` and the packages below it. It works on arrays and needs no torch. Offers plug-ins nothing.
"""
