"""From the raw splits of a data set to memory-mapped arrays, once."""
