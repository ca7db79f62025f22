"""What a trained classifier is: its spec, network, preprocessing and labels.

This package travels inside every archive under this same name, so it imports nothing else of the project.
Training, evaluation and serving all use it; nobody else defines preprocessing.
"""
