"""The same server as an application of Ray Serve: the extra `ray`.

    serve run deploy.server.ray_serve:app bundle=/models/bundle runtime=onnxruntime-cpu

Every replica opens the bundle itself and holds its own sessions to the validated outputs. A replica
that does not give them here does not start.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ray import serve

from deploy.server.application import Application, Message, Receive, Send
from deploy.server.counts import Counts
from deploy.server.model import ModelOptions
from deploy.server.one_process import ServeOptions, opened, version
from deploy.server.service import Service, ServiceOptions
from export.errors import UsageError

_OF_THE_MODEL = {"runtime": str, "form": str, "batching": str, "name": str, "workers": int, "threads": int, "max_batch_size": int}
_OF_THE_SERVICE = {"max_queue_size": int, "timeout": float, "recheck": float}
_OF_RAY = {"replicas": int, "cpus": float, "max_ongoing_requests": int}


class _InReplica:
    """The ASGI application of a replica. The event loop that serves makes it at the first message,
    since workers hand their results to that loop."""

    def __init__(self, options: ServeOptions) -> None:
        self._options = options
        self._model = opened(options)  # refuses here, so that the replica does not start
        self._application: Application | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._ready()(scope, receive, send)

    def _ready(self) -> Application:
        if self._application is None:
            service = Service(self._model, self._options.service, Counts(), version())
            service.start()
            self._application = Application(service)
            self._loop = asyncio.get_running_loop()
        return self._application

    def healthy(self) -> bool:
        """Whether this replica should go on."""
        return self._application is None or self._application.service.ready


def app(args: Mapping[str, str]) -> serve.Application:
    """Build the application from arguments, as `serve run` and `serve build` give them."""
    options, ray_options = _options(args)

    def application() -> _InReplica:
        return _InReplica(options)

    @serve.deployment(
        name="samegraph",
        num_replicas=ray_options.get("replicas", 1),
        max_ongoing_requests=ray_options.get("max_ongoing_requests", 256),
        ray_actor_options={"num_cpus": ray_options.get("cpus", 1)},
        graceful_shutdown_timeout_s=30,
    )
    @serve.ingress(application)
    class Replica:
        """A replica."""

        def check_health(self) -> None:
            """Fail if a recheck found other bits or workers hang; Ray then makes a new replica."""
            inner = _inner(self)
            if inner is not None and not inner.healthy():
                raise RuntimeError("not ready")

    deployment: Any = Replica  # the decorators make a deployment of the class
    return deployment.bind()


def _inner(replica: Any) -> _InReplica | None:
    """Return our application inside Ray's wrapper of it."""
    return next((value for value in vars(replica).values() if isinstance(value, _InReplica)), None)


def _options(args: Mapping[str, str]) -> tuple[ServeOptions, dict[str, Any]]:
    known = {"bundle": Path, **_OF_THE_MODEL, **_OF_THE_SERVICE, **_OF_RAY}
    if unknown := sorted(set(args) - set(known)):
        raise UsageError(f"{unknown[0]} is not an argument of the application, expected some of {', '.join(known)}")
    if "bundle" not in args:
        raise UsageError("bundle is missing; give bundle=FOLDER, a path that every node has")
    try:
        values: dict[str, Any] = {name: known[name](value) for name, value in args.items()}
    except ValueError as error:
        raise UsageError(f"an argument has the wrong type: {error}") from error
    model = ModelOptions(**{name: values[name] for name in _OF_THE_MODEL if name in values})
    if not model.threads:
        model = replace(model, threads=max(1, int(values.get("cpus", 1))))
    service = ServiceOptions(**{name: values[name] for name in _OF_THE_SERVICE if name in values})
    return ServeOptions(bundle=values["bundle"].absolute(), model=model, service=service), {name: values[name] for name in _OF_RAY if name in values}
