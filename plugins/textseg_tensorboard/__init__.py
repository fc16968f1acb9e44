"""A run's recipe and results in TensorBoard, beside the curves of its training."""
