"""Several processes or GPUs that train one network."""
