"""What Python programs and notebooks call: `torchyard.run`, `runs`, `compare` and `load`."""
