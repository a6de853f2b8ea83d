"""Counters, gauges and histograms in Prometheus' text form. None of them holds text of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily

if TYPE_CHECKING:
    from .call import Service

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
    """The metrics of one server, in a registry of their own."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("nextword_requests", "Requests answered.", ["endpoint", "status"], registry=registry)
        self.prompt_tokens = Counter("nextword_prompt_tokens", "Tokens of prompts.", registry=registry)
        self.cached_tokens = Counter(
            "nextword_prompt_tokens_cached", "Tokens of prompts found in the prefix cache.", registry=registry
        )
        self.generated_tokens = Counter("nextword_generation_tokens", "Tokens generated.", registry=registry)
        self.cancelled = Counter("nextword_cancelled", "Requests whose client hung up.", registry=registry)
        self.rejected = Counter("nextword_rejected", "Requests refused because the queue was full.", registry=registry)
        self.first_token = Histogram(
            "nextword_time_to_first_token_seconds", "From the request to its first token.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.inter_token = Histogram(
            "nextword_inter_token_seconds", "Between the steps that gave a request tokens.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.request_seconds = Histogram(
            "nextword_request_seconds", "From the request to the end of its answer.", buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self.tokens = self.prompts = self.cached = 0  # for the status line
        registry.register(self)

    def arrived(self, tokens: int, seconds: float, first: bool) -> None:
        """Tokens that a request got in one step, `seconds` after the request or after the step before."""
        self.tokens += tokens
        self.generated_tokens.inc(tokens)
        (self.first_token if first else self.inter_token).observe(seconds)

    def read(self, tokens: int, cached: int) -> None:
        """A prompt of `tokens`, of which `cached` were in the prefix cache."""
        self.prompts, self.cached = self.prompts + tokens, self.cached + cached
        self.prompt_tokens.inc(tokens)
        self.cached_tokens.inc(cached)

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges, as they are now. Called by prometheus_client."""
        running, waiting, _ = self._service.load
        paused = sum(call.paused for call in list(self._service.calls))
        pages = sum(model.engine.pages_used for model in list(self._service.models.loaded.values()))
        for name, text, value in (
            ("requests_running", "Requests that generate or read a prompt.", running),
            ("requests_waiting", "Requests in the queue.", waiting),
            ("requests_paused", "Requests whose client does not read.", paused),
            ("slots", "Sequences decoded at a time.", self._service.config.parallel),
            ("kv_pages_used", "Pages of keys and values held by requests under way.", pages),
        ):
            yield GaugeMetricFamily(f"nextword_{name}", text, value=value)

    @property
    def text(self) -> bytes:
        return generate_latest(self.registry)
