"""From a network to figures: predictions, metrics, intervals and tests."""
