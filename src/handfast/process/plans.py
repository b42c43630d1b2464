"""Make the relays' plan of a configuration and of the files that it names."""

from __future__ import annotations

from handfast.config import Config, KernelTls
from handfast.process.credentials import Files, client_policy
from handfast.process.listening import Bound
from handfast.relay.plan import ListenerPlan, Plan
from handfast.transport.kernel import Support


def make_plan(
    generation: int,
    config: Config,
    bound: tuple[Bound, ...],
    files: Files,
    kernel: Support,
) -> Plan:
    """Put a plan together; `files.listeners` are in the order of `bound`."""
    listeners = {
        each.number: ListenerPlan(
            name=each.listener.name,
            listen_ip=each.ip,
            listen_port=each.port,
            family=each.sock.family,
            service=each.listener.service,
            routes=each.listener.routes,
            clients=client_policy(each.listener, loaded),
            kernel_after=_kernel_after(each.listener.kernel_tls),
        )
        for each, loaded in zip(bound, files.listeners, strict=True)
    }
    return Plan(
        generation=generation,
        listeners=listeners,
        timeouts=config.timeouts,
        relays=config.nworkers,
        loglevel=config.loglevel,
        anchors=files.anchors,
        kernel=kernel,
        accounts=files.accounts,
    )


def _kernel_after(wanted: KernelTls) -> int:
    return -1 if wanted.mode == "off" else wanted.after
