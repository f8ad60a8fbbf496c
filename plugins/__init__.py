"""The built-in plugins."""

if __name__ != "torchyard.plugins":  # the clone is the working folder, or on the path
    raise ImportError(
        f"{__file__} is torchyard's own, and was imported as '{__name__}': its import name is "
        "'torchyard', as in `from torchyard import ModelParams, hookimpl`"
    )
