"""Built-in augmentations: what makes training samples differ from epoch to epoch."""
