"""Writing the first version of a plugin: `torchyard plugins new`."""
