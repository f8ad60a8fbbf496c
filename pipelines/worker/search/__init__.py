"""Settings that are found by training a little: the batch size, the learning rate."""
