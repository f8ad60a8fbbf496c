"""Pictures: images in grids, matrices, plots, and their style."""
