"""The built-in data sets, and their archives, downloads and paths."""
