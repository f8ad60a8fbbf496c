"""What runs beside the runs: the Prefect server, the MLflow UI, the worker, schedules."""
