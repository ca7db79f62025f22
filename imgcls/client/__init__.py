"""Predictions over HTTP: needs requests, nothing else; no torch, and no other room of the project.

with Client("http://127.0.0.1:8080", token="…") as client:
    print(client.predict_file(Path("digit.png")).best.label)
"""

from imgcls.client.answers import Prediction, RankedClass
from imgcls.client.client import Client

__all__ = ["Client", "Prediction", "RankedClass"]
