"""The Prefect flow: its tasks, what they record, what happens when they fail."""
