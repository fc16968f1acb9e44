"""Inference: a trained model and an image give a mask; also ensembles, bundles and ONNX networks.

May import `drawing` and the packages below it. Offers users `textseg.load`, which is defined in `loading.py`.
"""
