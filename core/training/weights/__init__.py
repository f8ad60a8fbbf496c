"""What is made of a network's weights beside the steps of the optimizer."""
