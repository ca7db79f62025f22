"""Classes of different sizes: weights for the loss, and how often each image is drawn."""

import torch
from torch import Tensor


def weigh_classes(labels: Tensor, *, classes: int) -> Tensor:
    """Returns a weight for each class, float32 (classes,), inverse to its number of images, 1 on average over images.

    Source: scikit-learn's class_weight="balanced"; a class without images weighs 0.
    """
    counts = torch.bincount(labels, minlength=classes).float()
    return torch.where(counts > 0, len(labels) / (int((counts > 0).sum()) * counts.clamp(min=1)), 0.0)


def draw_balanced(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Returns indices, int64 (N,), drawn with replacement so that each class comes equally often."""
    weights = weigh_classes(labels, classes=int(labels.max()) + 1)[labels]
    return torch.multinomial(weights, len(labels), replacement=True, generator=generator)
