"""The test kit for plugin authors; `torchyard.testing` has its names."""
