"""`python -m torchyard` is the command `torchyard`."""

from torchyard.pipelines.__main__ import main

main()
