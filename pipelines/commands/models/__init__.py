"""Commands for models: use, promote, verify."""
