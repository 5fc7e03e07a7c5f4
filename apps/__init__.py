"""Reference applications."""
