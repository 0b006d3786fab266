"""Shared helpers: checks with consistent error messages, files, limits, untrusted arrays."""
