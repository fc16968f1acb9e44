"""Transforms for the list `augmentation` of a recipe, and adapters for those of MONAI and torchio."""
