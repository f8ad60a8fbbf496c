"""Prefect flows and tasks, the services they need, and the command line."""
