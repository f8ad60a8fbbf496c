"""What spreads the trials of a study: this process's workers, a work pool, Dask or Ray."""
