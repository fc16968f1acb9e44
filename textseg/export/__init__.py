"""Export of trained models: bundles, ONNX files, containers for Grand Challenge, model cards.

May import `inference` and the packages below it. `inference` opens the files that this package writes.
Offers plug-ins nothing.
"""
