"""Where a tracking store is: its address as people write it, and a local store that has moved."""
