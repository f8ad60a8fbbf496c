"""Deployments and schedules in Prefect: what they run, when, and on which work pool."""
