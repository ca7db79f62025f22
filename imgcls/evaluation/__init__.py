"""How good a run is, on one or many test sets: numbers, tables, plots and predictions.

    RUN, NAME=SOURCE ─ evaluate_run ─► metrics.json, confusion_NAME.png, predictions_NAME.csv

`imgcls evaluate` calls `run.evaluate_run`; train.py calls `metrics.compute_metrics`. Every number is scikit-learn's.
"""
