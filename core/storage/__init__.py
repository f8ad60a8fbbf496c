"""What torchyard keeps on disk and in MLflow, how much room it takes, and what of it may go."""
