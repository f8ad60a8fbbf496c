"""What flows between the stages: samples, splits, predictions and their files."""
