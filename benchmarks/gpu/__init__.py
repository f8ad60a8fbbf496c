"""What training on a GPU is worth: `python -m benchmarks.gpu`, one JSON file and a log."""
