"""Writing a plugin to begin with: `torchyard plugins new`."""
