"""Data sets become batches of slices: preparation, splits, augmentation, loading, checks and phantoms.

May import `text`, `models`, `metrics` and the packages below them. Offers plug-ins the package `textseg.data.phantoms`.
"""
