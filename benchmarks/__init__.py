"""What torchyard's speed is compared with, and how: see docs/benchmarks.md."""
