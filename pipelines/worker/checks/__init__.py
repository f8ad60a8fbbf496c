"""What is tried before a training begins."""
