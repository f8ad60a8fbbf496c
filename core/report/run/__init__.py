"""What stands on the page of a run: headline, confusions, how it was trained, the model card."""
