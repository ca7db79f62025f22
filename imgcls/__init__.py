"""The installed side of the project: data, training, evaluation, archives, serving and the client.

Nothing in here travels in an archive; what does is in the packages `model` and `handler`.
"""

__version__ = "0.1.0"
