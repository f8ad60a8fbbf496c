"""What is wrong with a data set: leaks between its splits, duplicates, doubtful labels."""
