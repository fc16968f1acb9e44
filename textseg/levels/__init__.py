"""Levels of the spine in label maps: scores of their names, their obedience to a text, and a repair of their order.

May import `text`, `models`, `metrics` and the packages below them. It works on arrays and needs no torch. Offers
plug-ins nothing.
"""
