"""A process beside the services that has imported what a run needs: see `process.py`."""
