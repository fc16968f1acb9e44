"""Models for use elsewhere: bundles, ONNX, containers for Grand Challenge, model cards.

Imports `inference` and below, which opens what is written here.
"""
