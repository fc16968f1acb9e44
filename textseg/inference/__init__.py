"""From a trained model and an image to a mask.

Imports `drawing`, `runs`, `levels` and below.
"""
