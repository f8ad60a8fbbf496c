"""Registered models: champions, how often test sets were asked, and what uses a model."""
