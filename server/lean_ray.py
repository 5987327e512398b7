"""Where Ray has no setting for what a small server needs: changed in its own processes, all of it here.

Each function runs in one kind of Ray process. They reach into private parts of Ray (locked version): a part that is not
found is left as Ray has it, which costs joules and nothing else, save for the loopback that a test watches over.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

LOOPBACK = "127.0.0.1"
HURRY_S = 0.1
_AGENT_ARGUMENT = "--dashboard_agent_command="
_AGENT_SCRIPT = re.compile(r'"[^"]*/dashboard/agent[.]py"|(?<= )[^ "]*/dashboard/agent[.]py')


def in_driver(*, dashboard: bool) -> None:
    """Before `ray.init`: leave out the processes that only watch, unless the dashboard is wanted.

    The log monitor forwards log lines to drivers (switched off anyway), the monitor scales clusters, the dashboard's
    head and agent show and collect statistics. Together they idle at about 1.1 CPU-seconds a minute, hold 380 MiB, and
    make the start twice as long. `ray.init` has no argument to leave them out.
    """
    if dashboard:
        return
    from ray._private import services
    from ray._private.node import Node

    for start in ("start_monitor", "start_log_monitor", "start_api_server"):
        if hasattr(Node, start):
            setattr(Node, start, _nothing)
    original = services.start_ray_process
    if not hasattr(original, "__wrapped__"):

        @functools.wraps(original)
        def start_ray_process(command: list[str], *arguments: Any, **options: Any) -> Any:
            return original([_with_quiet_agent(word) for word in command], *arguments, **options)

        services.start_ray_process = start_ray_process


def in_controller() -> None:
    """In Serve's controller, when it starts (Serve calls it by `RAY_SERVE_CONTROLLER_CALLBACK_IMPORT_PATH`)."""
    _leave_out_fallback_proxy()
    _hurry_while_unsettled()


def _leave_out_fallback_proxy() -> None:
    """No fallback proxy, an actor that waits for applications without replicas to answer in their place. Ours never
    scales to none; HAProxy answers 503 by itself while there is none. Ray's gRPC proxying needs it, so it stays where
    that is on."""
    from ray.serve._private.proxy_state import ProxyStateManager
    from ray.serve._private.utils import is_grpc_enabled

    start = getattr(ProxyStateManager, "_start_fallback_proxy_if_needed", None)
    if start is None:
        return

    def start_if_grpc(self: Any, *arguments: Any, **options: Any) -> None:
        if is_grpc_enabled(self._grpc_options):
            start(self, *arguments, **options)

    ProxyStateManager._start_fallback_proxy_if_needed = start_if_grpc


def _hurry_while_unsettled() -> None:
    """Turn the control loop ten times as often while something starts or was lost: a replica takes several turns to be
    replaced, and a second between them is only cheap when there is nothing to do."""
    from ray.serve._private import controller
    from ray.serve._private.deployment_state import DeploymentStateManager

    update = getattr(DeploymentStateManager, "update", None)
    resting_s = getattr(controller, "CONTROL_LOOP_INTERVAL_S", None)
    if update is None or resting_s is None:
        return

    def update_and_pace(self: Any, *arguments: Any, **options: Any) -> Any:
        result = update(self, *arguments, **options)
        statuses = self.get_deployment_statuses()
        settled = bool(statuses) and all(one.status.value == "HEALTHY" for one in statuses)
        controller.CONTROL_LOOP_INTERVAL_S = resting_s if settled else HURRY_S
        return result

    DeploymentStateManager.update = update_and_pace


def in_replica() -> None:
    """In a replica, before it listens: Ray binds its gRPC servers to all interfaces without an option for it."""
    from ray.serve._private import default_impl, replica

    for module, name in ((replica, "add_port_to_grpc_server"), (default_impl, "add_grpc_address")):
        add = getattr(module, name, None)
        if add is not None and not hasattr(add, "__wrapped__"):
            setattr(module, name, _on_loopback(add))


def _on_loopback(add: Callable[[Any, str], Any]) -> Callable[[Any, str], Any]:
    @functools.wraps(add)
    def add_on_loopback(server: Any, address: str) -> Any:
        return add(server, address.replace("[::]", LOOPBACK).replace("0.0.0.0", LOOPBACK))

    return add_on_loopback


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _with_quiet_agent(word: str) -> str:
    """An argument of the raylet, with our agent's module in the place of the script of Ray's."""
    if not word.startswith(_AGENT_ARGUMENT):
        return word
    return _AGENT_SCRIPT.sub("-m server.quiet_agent", word, count=1)
