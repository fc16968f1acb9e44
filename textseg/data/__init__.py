"""Data sets become batches of slices: preparation, splits, augmentation, loading, checks and phantoms.

May import `levels` and the packages below it. Offers plug-ins the package `textseg.data.phantoms`.
"""
