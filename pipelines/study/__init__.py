"""Running a study: Optuna chooses the trials' settings, Prefect and MLflow show the trials."""
