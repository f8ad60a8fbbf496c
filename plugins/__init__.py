"""The built-in plugins, one file a kind; each imports only core's public names."""
