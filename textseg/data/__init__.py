"""From files to batches of slices: preparation, splits, augmentation, loading, checks and phantoms.

Imports `text`, `recipe`, `volumes` and below.
"""
