"""Data sets as plain folders, for any region."""
