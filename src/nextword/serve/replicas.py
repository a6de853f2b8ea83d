"""Replicas of a server on a Ray cluster: a Ray Serve deployment, and the application in front of it.

Ray Serve starts replicas, checks their health, replaces those that die, and gives a request to the less loaded of two.
The front is the server of this process, with all its rules and limits; it passes requests on and answers back.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import msgspec
from prometheus_client import generate_latest
from prometheus_client.core import Metric
from starlette.responses import Response
from starlette.types import Message

from ..base import NextwordError, RunError, UsageError
from ..base.cluster import Node, attached, check_nodes, cpus_of, nodes_of, reserve
from ..engine import LoadConfig, Worker
from ..weights.catalogue import resolve
from .app import ENDPOINTS, App, Endpoint, Exchange
from .call import Call, Service
from .config import ServeConfig
from .errors import ApiError
from .metrics import CONTENT_TYPE
from .models import About, Models
from .requests import PING, answer, event
from .server import bind, run

TRIES = 3  # replicas that one request may lose
_DOWNLOAD_SECONDS = 3600.0  # for a node to get the models
_STATUS_SECONDS = 5.0  # for replicas to say how they are
_HEALTH, _METRICS = ENDPOINTS["/health"], ENDPOINTS["/metrics"]
_OF_MODELS = [ENDPOINTS[path] for path in ENDPOINTS if path != "/v1/plan" and ENDPOINTS[path].body is not None]
_OF_MODELS += [ENDPOINTS["/props"], ENDPOINTS["/slots"]]  # all of these are answered by replicas
_DEPLOYMENT = "replica"

Counts = tuple[int, int, int]  # tokens generated, tokens of the prompt, and how many of those were cached


def serve_on_cluster(
    names: Sequence[str],
    config: ServeConfig,
    loading: LoadConfig,
    cluster: str = "auto",
    replicas: int | None = None,
    on_ready: Callable[[str, About], None] = lambda address, about: None,
) -> None:
    """Serve models from replicas on a running Ray cluster, "auto" or HOST:PORT, until SIGINT or SIGTERM.

    `replicas`: None for one a node. Raises UsageError for a wrong setting or too many replicas, RunError if the port
    is taken, no cluster answers, or a node lacks a model.
    """
    names = [os.path.abspath(name) if os.path.exists(name) else name for name in names]
    models = Models(names, config, loading)
    with closing(bind(config.host, config.port)) as listener, attached(cluster) as ray:
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # Ray's own writes a trace, and nothing is undone
        nodes = [node for node in nodes_of(ray) if cpus_of(node)]
        replicas = replicas or len(nodes)
        resources = _resources(nodes, loading, replicas)
        check_nodes(ray, _lacking, (names,), nodes, _DOWNLOAD_SECONDS)
        app = f"nextword-{socket.gethostname()}-{listener.getsockname()[1]}"
        with _deployed(app, replicas, resources, (names, _of_replica(config), loading)) as handle:
            about = replace(handle.about.remote().result(), replicas=replicas)
            together = replace(config, parallel=config.parallel * replicas, queue=config.queue * replicas)
            front = Front(Service(together, models), ray, app, handle)
            run(front, listener, lambda address: on_ready(address, about))


def _resources(nodes: Sequence[Node], loading: LoadConfig, replicas: int) -> dict[str, float]:
    """What each replica reserves: a CPU for each thread, by default those of the smallest node; and its GPU."""
    cpus, room = reserve(nodes, loading.threads)
    if replicas > room:
        raise UsageError(
            f"--replicas is {replicas}; with a CPU for each of {cpus} threads, the cluster has room for {room}."
            " Give fewer, or fewer --threads"
        )
    return {"num_cpus": cpus, "num_gpus": int(loading.device.startswith("cuda"))}


def _lacking(names: Sequence[str]) -> str:
    """Which model this node lacks. Those of the catalogue and the hub are downloaded."""
    for name in names:
        try:
            resolve(name)
        except NextwordError as error:
            return f"lacks {name}: {error}"
    return ""


def _of_replica(config: ServeConfig) -> ServeConfig:
    """The settings of a replica, which is asked by the front only: no key leaves this process."""
    runs = config.runs.absolute()
    return replace(
        config, host="127.0.0.1", api_key=None, runs=runs, allowed_hosts=(), cors_origins=(), access_log=False
    )


@contextmanager
def _deployed(
    app: str, replicas: int, resources: dict[str, float], arguments: tuple[Any, ServeConfig, Any]
) -> Iterator[Any]:
    """Replicas that are ready, as Ray Serve's handle. Raises RunError if they cannot be started."""
    serve = _ray_serve()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    config = arguments[1]
    deployment = serve.deployment(Replica).options(
        name=_DEPLOYMENT, num_replicas=replicas, ray_actor_options=resources,
        max_ongoing_requests=config.parallel + config.queue, health_check_period_s=2,
        graceful_shutdown_wait_loop_s=0.1, graceful_shutdown_timeout_s=config.shutdown_timeout,
        max_constructor_retry_count=replicas, logging_config={"log_level": "WARNING", "enable_access_log": False},
    )  # fmt: skip
    serve.start(proxy_location="Disabled")
    serve.delete(app)  # what a killed server left
    target = serve.RunTarget(deployment.bind(*arguments), name=app, route_prefix=None)
    _note(f"Starting {replicas} {'replica' if replicas == 1 else 'replicas'} ...")
    try:
        [handle] = serve.run_many([target], wait_for_applications_running=False)
        _wait(serve, app)
        yield handle
    finally:
        serve.delete(app)


def _wait(serve: Any, app: str) -> None:
    """Wait until the replicas run. What Ray says meanwhile, as of a lack of CPUs, is shown."""
    shown = ""
    while (status := serve.status().applications[app]).status != "RUNNING":
        deployment = status.deployments.get(_DEPLOYMENT)
        lines = deployment.message.strip().split("\n") if deployment else [""]
        if status.status == "DEPLOY_FAILED":
            raise RunError("a replica does not start: " + re.sub(r"^nextword\.\S+: ", "", lines[-1])[:500])
        if lines[0] != shown and "taken more than" in lines[0]:
            shown = lines[0]
            _note(shown)
        time.sleep(0.1)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError:
        raise UsageError("--workers ray needs ray[serve]. Install it: pip install 'nextword[cluster]'") from None
    return serve


class Replica:
    """The server's application with its own engine, called by the front in place of HTTP."""

    def __init__(self, names: Sequence[str], config: ServeConfig, loading: LoadConfig) -> None:
        models = Models(names, config, loading)
        self._service = Service(config, models)
        self._worker = Worker(on_step=self._service.on_step)
        self._worker.__enter__()
        models.start(self._worker)
        self._app = App(self._service)

    async def about(self) -> About:
        """What this replica serves."""
        return self._service.models.about

    async def metrics(self) -> tuple[str, list[Metric]]:
        """The machine and process of this replica, and its metrics."""
        return f"{socket.gethostname()}:{os.getpid()}", list(self._service.metrics.registry.collect())

    async def answer(self, method: str, path: str, body: bytes) -> AsyncIterator[tuple[Counts, list[Message]]]:
        """The ASGI messages of an answer as they come, each time with what was counted so far."""
        messages: asyncio.Queue[Message | None] = asyncio.Queue()
        received = iter([{"type": "http.request", "body": body}])

        async def receive() -> Message:
            for message in received:
                return message
            await asyncio.Event().wait()  # who hangs up cancels this call
            raise AssertionError

        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": method, "path": path, "headers": headers}
        self._service.start()
        call = self._app.begin(path)
        answering = asyncio.ensure_future(self._app.answer(call, Exchange(scope, receive, messages.put)))
        answering.add_done_callback(lambda _: messages.put_nowait(None))
        try:
            ended = False
            while not ended:
                ready = [await messages.get()]
                while not messages.empty():
                    ready.append(messages.get_nowait())
                ended = ready[-1] is None
                counts = call.generated, call.read, call.cached
                yield counts, [message for message in ready if message is not None]
        finally:
            answering.cancel()
            await asyncio.gather(answering, return_exceptions=True)


class Front(App):
    """The application whose answers come from replicas."""

    def __init__(self, service: Service, ray: Any, app: str, handle: Any) -> None:
        super().__init__(service)
        self._ray, self._name, self._handle = ray, app, handle
        self._answers = handle.options(method_name="answer", stream=True)

    async def _respond(self, exchange: Exchange, call: Call, endpoint: Endpoint, data: bytes) -> None:
        if endpoint is _METRICS:
            await exchange.send(await self._metrics())
        elif endpoint is _HEALTH and not self.service.draining:
            await exchange.send(await self._health())
        elif endpoint in _OF_MODELS:
            await self._pass_on(exchange, call, endpoint, data)
        else:
            await super()._respond(exchange, call, endpoint, data)

    async def _pass_on(self, exchange: Exchange, call: Call, endpoint: Endpoint, data: bytes) -> None:
        """Answer from a replica; from another one if it dies before its answer began."""
        if endpoint.body is not None:
            call.admit(1)
        relay = _Relay(exchange)
        try:
            for _ in range(TRIES):
                if await self._ask(relay, call, data):
                    return
            raise ApiError(503, f"{TRIES} replicas in turn died of this request or while they answered it")
        except Exception as error:
            if not exchange.started:
                raise
            self._report(error)
            await relay.end(endpoint.failure(error, relay.events))

    async def _ask(self, relay: _Relay, call: Call, data: bytes) -> bool:
        """Whether a replica has answered. Raises ApiError if it died in the middle of its answer."""
        scope, then = relay.exchange.scope, call.begun
        seen: Counts = (0, 0, 0)
        exceptions = self._ray.exceptions
        answers = self._answers.remote(scope["method"], scope["path"], data)
        try:
            async for counts, messages in answers:
                then = self._add(call, counts, seen, then)
                seen = counts
                for message in messages:
                    await relay.send(message)
        except exceptions.RayTaskError:  # a fault of ours
            raise
        except exceptions.RayError:
            if relay.begun and not relay.done:
                raise ApiError(503, "the replica that was answering has died. Send the request again") from None
            return relay.done
        except _ray_serve().exceptions.DeploymentUnavailableError:
            raise ApiError(503, "Ray has given up replacing the replicas; its logs say why") from None
        finally:
            answers.cancel()
        return True

    def _add(self, call: Call, counts: Counts, seen: Counts, then: float) -> float:
        """Count what a replica has counted since it had `seen`. Returns when the last tokens came, at first `then`."""
        generated, read, cached = (count - before for count, before in zip(counts, seen, strict=True))
        if read:
            self.service.metrics.read(read, cached)
        if not generated:
            return then
        now = time.perf_counter()
        self.service.metrics.arrived(generated, now - then, first=not seen[0])
        call.generated = counts[0]
        return now

    async def _health(self) -> Response:
        """Whether a replica is there, and how many."""
        try:
            async with asyncio.timeout(_STATUS_SECONDS):
                status = await asyncio.to_thread(_ray_serve().status)
        except (TimeoutError, self._ray.exceptions.RayError):
            raise ApiError(503, "Ray does not say whether replicas are running") from None
        running = status.applications[self._name].deployments[_DEPLOYMENT].replica_states.get("RUNNING", 0)
        if not running:
            raise ApiError(503, "no replica is running; they are being replaced")
        return answer({"status": "ok", "replicas": running})

    async def _metrics(self) -> Response:
        """The metrics of each replica, and of the front as clients see it."""
        asked = self._handle.broadcast("metrics").results_async(timeout_s=_STATUS_SECONDS, return_exceptions=True)
        try:
            replies = [reply for reply in await asked if not isinstance(reply, BaseException)]
        except TimeoutError:
            raise ApiError(503, f"a replica does not answer within {_STATUS_SECONDS:g} s") from None
        own = ("front", list(self.service.metrics.registry.collect()))
        return Response(generate_latest(_Labelled([own, *replies])), headers={"content-type": CONTENT_TYPE})


class _Labelled:
    """Metrics of several servers as one registry, each with the label `replica`."""

    def __init__(self, servers: Iterable[tuple[str, list[Metric]]]) -> None:
        self._servers = servers

    def collect(self) -> Iterable[Metric]:
        families: dict[str, Metric] = {}
        for server, metrics in self._servers:
            for metric in metrics:
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                family.samples += [s._replace(labels={**s.labels, "replica": server}) for s in metric.samples]
        return families.values()


class _Relay:
    """What a client gets of the answers of replicas: all of the first one that begins.

    `begun`: whether a part of an answer was sent; `done`: whether all of it; `events`: of a stream, that were sent.
    """

    def __init__(self, exchange: Exchange) -> None:
        self.exchange, self.events = exchange, 0
        self.begun = self.done = False
        self._head: Message = {}

    async def send(self, message: Message) -> None:
        """Pass a message on. The head waits for the first part of the body, and is sent once."""
        if message["type"] == "http.response.start":
            self._head = message
            return
        if not self.exchange.started:
            await self.exchange.send_message(self._head)
        elif self._head["status"] != 200:  # the client has had a head and comments from a replica that died
            raise ApiError(self._head["status"], msgspec.json.decode(message["body"])["error"]["message"])
        if message["body"] != PING:
            self.begun, self.done = True, not message.get("more_body", False)
            self.events += message["body"].count(b"\n\n")
        await self.exchange.send_message(message)

    async def end(self, failure: dict[str, Any]) -> None:
        """End a stream with an event."""
        data = event(failure, named="type" in failure)
        await self.exchange.send_message({"type": "http.response.body", "body": data, "more_body": False})
