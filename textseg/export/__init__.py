"""Export of trained models: bundles, ONNX files, containers for Grand Challenge, model cards.

May import `evaluation`, `inference` and the packages below them. `inference` opens the files that this package writes.
Offers plug-ins nothing.
"""
