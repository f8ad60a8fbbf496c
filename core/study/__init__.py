"""A study: many runs of one configuration, some of whose settings are searched."""
