"""What a supervisor that was killed may have left: its Envoy, its servers, its sockets."""

from contextlib import suppress

import psutil

from imgcls.gateway.folder import GatewayFolder, SupervisorState
from imgcls.gateway.gateway import Gateway
from imgcls.serving import processes, server


def end_leftovers(folder: GatewayFolder, state: SupervisorState) -> None:
    """Ends every process of a supervisor that has ended itself, and forgets it; the table and the store stay."""
    for process in processes.find_marked(state.gateway_id):
        with suppress(psutil.Error):
            process.kill()
    for member in Gateway.of(folder, state).members:
        server.stop(member.folder)
    folder.forget(state.sockets)
