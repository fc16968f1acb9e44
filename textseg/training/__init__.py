"""Training: a run from its recipe to its report, with the training loop, checkpoints, processes and loggers.

May import `comparison`, `reports` and the packages below them. Only this package needs Lightning. Offers users
`textseg.run`, which is defined in `run.py`.
"""

from textseg.system.torch_builds import usable_torchvision

usable_torchvision()  # Lightning imports it
