"""The process that does the torch work, its stages, and the handle on it."""
