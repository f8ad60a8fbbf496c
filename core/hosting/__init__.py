"""Plugins: what one is, how it is found, loaded, looked up by name and checked."""
