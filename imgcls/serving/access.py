"""Clients of a running server, with its tokens; a token that has expired is renewed."""

from imgcls.client import Client
from imgcls.serving.management import Management
from imgcls.serving.state import ServerState, StateFolder
from imgcls.serving.tokens import current_tokens

GOLDEN_TIMEOUT_S = 60.0


def inference_client(state: ServerState, folder: StateFolder, *, timeout_s: float = GOLDEN_TIMEOUT_S) -> Client:
    """Returns a client of a running server's inference API, with a token that has not expired."""
    return Client(
        state.inference_url, token=inference_token(state, folder), model=state.model, timeout_s=timeout_s, retries=0
    )


def inference_token(state: ServerState, folder: StateFolder) -> str | None:
    """Returns the token for predictions, renewed if it has expired; None where the server asks for none."""
    if not state.token_required:
        return None
    return current_tokens(folder.key_file, management_url=state.management_url).inference.key


def management_client(state: ServerState, folder: StateFolder) -> Management:
    """Returns a client of a running server's management API."""
    token = None
    if state.token_required:
        token = current_tokens(folder.key_file, management_url=state.management_url).management.key
    return Management(state.management_url, token=token)
