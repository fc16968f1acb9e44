"""The networks that ATM-Net is compared with: one file per network."""
