"""The heart in short-axis MRI."""
