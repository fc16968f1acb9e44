"""The cervical spine."""
