"""What flows between the stages: samples, splits, predictions and the files they lie in."""
