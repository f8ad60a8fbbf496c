"""What others use a model by: an HTTP API, or a file of theirs."""
