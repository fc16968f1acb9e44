"""ATM-Net (arXiv 2504.03476): one file per module of the paper."""
