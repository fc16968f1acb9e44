"""The parts of a training and of an evaluation that recipes name without another plug-in."""
