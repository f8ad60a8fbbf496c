"""Image files: how they are read, scaled, decoded and packed."""
