"""The training loop and what it uses: network, device, checkpoints, several processes."""
