"""What `torchyard plugins new` writes: a plugin of each kind, with its name to be filled in."""
