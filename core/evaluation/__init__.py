"""From a network to its metrics: predictions, intervals, calibration and paired tests."""
