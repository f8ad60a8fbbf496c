"""What a run records in MLflow and Prefect."""
