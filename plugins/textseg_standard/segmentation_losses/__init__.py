"""Terms of the segmentation loss."""
