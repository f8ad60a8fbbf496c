"""The digits job with Prefect and MLflow at their defaults, as written in an afternoon."""

import mlflow
import pandas as pd
from digits_bare import load, test, train
from prefect import flow, task


@task
def prepare():
    """The data."""
    return load()


@task
def fit(images, labels):
    """The network, its losses logged."""
    return train(images, labels, lambda epoch, loss: mlflow.log_metric("loss", loss, step=epoch))


@task
def evaluate(network, images, labels):
    """Accuracies."""
    return test(network, images, labels)


@task
def report(accuracy, per_class):
    """What the run showed, in MLflow."""
    mlflow.log_metric("accuracy", accuracy)
    pd.DataFrame({"class": range(10), "accuracy": per_class}).to_csv("per_class.csv")
    mlflow.log_artifact("per_class.csv")


@flow
def pipeline():
    """The whole job in one MLflow run."""
    mlflow.set_tracking_uri("sqlite:///mlruns/mlflow.db")
    mlflow.set_experiment("naive")
    with mlflow.start_run():
        mlflow.log_params({"lr": 0.05, "epochs": 5, "batch_size": 32})
        train_images, train_labels, test_images, test_labels = prepare()
        network = fit(train_images, train_labels)
        accuracy, per_class = evaluate(network, test_images, test_labels)
        report(accuracy, per_class)
        mlflow.pytorch.log_model(network, name="model", input_example=test_images[:2].numpy())
    return accuracy


if __name__ == "__main__":
    print(pipeline())
