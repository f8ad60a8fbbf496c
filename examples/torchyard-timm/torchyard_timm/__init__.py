"""timm's classification models for torchyard."""
