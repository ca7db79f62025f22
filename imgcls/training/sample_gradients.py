"""Per-sample gradients of the last layer: how hard each image of a batch pulls, without a backward pass for each.

The loss of one image is the cross entropy of z = W h + b, so its gradient is (p - y) hᵀ with respect to W, and p - y
with respect to b, where p is the softmax and y the (smoothed) target. The norm of both together is exactly
‖p - y‖ · √(‖h‖² + 1); a test compares it with torch.func's vmap(grad). Whole per-sample gradients would take the memory
of a network for each image, and torch.func cannot take them through a batch norm that is training.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from imgcls.errors import UsageError

LEAST_SPREAD = 0.25  # of the logarithms: early in training all norms are nearly equal


class LastLayer:
    """Watches what comes into a network's last layer.

    Raises:
        UsageError: the network's last layer is not linear.
    """

    def __init__(self, network: nn.Module, *, classes: int) -> None:
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not linear or linear[-1].out_features != classes:
            raise UsageError("--drop-gradients needs a network whose last layer is linear; leave it off")
        self._has_bias = linear[-1].bias is not None
        self._features: Tensor | None = None
        linear[-1].register_forward_pre_hook(self._remember)

    def _remember(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._features = inputs[0].detach()

    @torch.no_grad()
    def measure(self, logits: Tensor, labels: Tensor, *, label_smoothing: float) -> Tensor:
        """Returns the norm of each image's gradient in the last layer, float32 (B,), for the last forward pass.

        Args:
            logits: (B, classes), of that pass.
            labels: int64 (B,).
            label_smoothing: of the loss.
        """
        if self._features is None:
            raise RuntimeError("measure comes after a forward pass")
        classes = logits.shape[1]
        targets = functional.one_hot(labels, classes) * (1 - label_smoothing) + label_smoothing / classes
        pull = torch.linalg.vector_norm(logits.float().softmax(1) - targets, dim=1)
        features = self._features.float().flatten(1)
        norms: Tensor = pull * (features.square().sum(1) + self._has_bias).sqrt()
        return norms


def find_outliers(norms: Tensor, *, k: float) -> tuple[Tensor, Tensor]:
    """Returns which norms, float32 (B,), are outliers of their batch, bool (B,), and the limit, float32 ().

    The rule is median + k·MAD of their logarithms: norms spread over orders of magnitude, as most images become easy.
    """
    logs = norms.clamp(min=1e-12).log()
    median = logs.median()
    spread = (1.4826 * (logs - median).abs().median()).clamp(min=LEAST_SPREAD)
    limit = median + k * spread
    return logs > limit, limit.exp()
