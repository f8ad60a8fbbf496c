"""The services beside the runs: Prefect server, MLflow UI, Prefect worker, schedules."""
