"""The Prefect server that torchyard starts: its process, and who may use it."""
