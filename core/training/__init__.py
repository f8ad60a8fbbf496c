"""The loop, and what it stands on: network, device, checkpoint, several processes."""
