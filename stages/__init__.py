"""One module per stage of dvc.yaml, and the command line."""
