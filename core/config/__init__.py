"""The configuration of a run: its schema, reading it, and resolving it with the plugins."""
