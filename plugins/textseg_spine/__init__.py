"""Lumbar spine MRI: atlases, the SPIDER reader, a procedural phantom."""
