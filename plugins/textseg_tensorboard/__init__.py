"""TensorBoard: the curves, pictures, recipe and results of a run."""
