"""Who trains a run: the process that its tags name, and how others know whether it lives."""
