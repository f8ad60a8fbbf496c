"""All that speaks to MLflow: recording runs, finding them, the model registry."""
