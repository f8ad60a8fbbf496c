"""Data elsewhere: its address, as a setting has it, and a copy of it in the cache."""
