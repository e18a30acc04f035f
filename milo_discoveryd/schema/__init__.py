"""The declaration and validation of settings."""
