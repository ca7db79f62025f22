"""The last layer: which it is, and training it alone while the rest keeps what it has learnt elsewhere."""

from torch import nn

from imgcls.errors import UsageError


def find_head(network: nn.Module) -> nn.Module:
    """Returns the layer that makes the logits: timm's own answer, or the last linear layer.

    Raises:
        UsageError: there is none.
    """
    ask = getattr(network, "get_classifier", None)
    head = ask() if callable(ask) else None
    if not isinstance(head, nn.Module) or not list(head.parameters()):
        linear = [module for module in network.modules() if isinstance(module, nn.Linear)]
        if not linear:
            raise UsageError("--freeze-epochs needs a network with a last layer of its own; leave it off")
        head = linear[-1]
    return head


def set_training(network: nn.Module, *, is_frozen: bool) -> None:
    """Puts a network into training mode; frozen, only its head learns, and batch norms keep their statistics."""
    network.train(not is_frozen)
    network.requires_grad_(not is_frozen)
    if is_frozen:
        head = find_head(network)
        head.train()
        head.requires_grad_()
