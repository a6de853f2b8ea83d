"""nextword serve: an OpenAI-compatible server."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..base import UsageError, read_text
from ..base.units import format_bytes, parse_bytes
from ..weights.catalogue import DEFAULT_MODEL
from ._names import complete_model
from ._options import load_config, loading_options

if TYPE_CHECKING:
    from ..serve.models import About

KEY_VARIABLE = "NEXTWORD_API_KEY"
_LARGEST_KEY = 4096  # bytes of a key's file


@click.command(name="serve")
@click.argument("names", metavar="[MODEL]...", nargs=-1, shell_complete=complete_model)
@click.option("-m", "--model", "models", multiple=True, metavar="NAME", shell_complete=complete_model,
              help=f"As MODEL; repeatable. The first one answers by default. Default: {DEFAULT_MODEL}.")  # fmt: skip
@click.option("--host", default="127.0.0.1", show_default=True, metavar="H", help="Address to listen on.")
@click.option("--port", type=int, default=8080, show_default=True, metavar="P", help="Port; 0: any that is free.")
@click.option("--api-key", metavar="K", help=f"Key that requests must carry. Better: a file, or {KEY_VARIABLE}.")
@click.option("--api-key-file", metavar="FILE", help="Read the key from a file.")
@click.option("--alias", metavar="NAME", help="What the API calls the (first) model.")
@click.option("--parallel", type=int, default=16, show_default=True, metavar="N", help="Sequences decoded at a time.")
@click.option("--queue", type=int, default=64, show_default=True, metavar="N", help="Requests that may wait.")
@click.option("--context", type=int, metavar="N", help="Most tokens of a request and its answer. Default: the model's.")
@click.option("--max-tokens", type=int, metavar="N", help="Most tokens an answer may have. Default: the context.")
@click.option("--seed", type=int, metavar="N", help="Seed of requests that give none. Default: random.")
@click.option("-t", "--temperature", type=float, default=1.0, show_default=True, metavar="T",
              help="Temperature of requests that give none.")  # fmt: skip
@click.option("--memory", metavar="SIZE", help="Most memory for weights and caches of all models, as in 8GB.")
@click.option("--runs", type=click.Path(path_type=Path, file_okay=False), default=Path("runs"), show_default=True,
              metavar="DIR", help="Folder of training runs to show, whose models are served as runs/NAME.")  # fmt: skip
@click.option("--allowed-host", "allowed_hosts", multiple=True, metavar="NAME",
              help="A further name by which requests may call this machine. Repeatable.")  # fmt: skip
@click.option("--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN",
              help="A web page that may call the server, as in https://example.com. Repeatable.")  # fmt: skip
@click.option("--shutdown-timeout", type=float, default=10.0, show_default=True, metavar="S",
              help="Seconds that requests under way have to finish when the server is told to end.")  # fmt: skip
@click.option("--workers", type=click.Choice(["ray"]), help="Answer from replicas on a Ray cluster that is running.")
@click.option("--replicas", type=click.IntRange(1), metavar="N", help="Replicas on the cluster. Default: one a node.")
@click.option("--cluster", metavar="ADDRESS", help="The cluster: auto (the default), or HOST:PORT of its head.")
@click.option("--access-log", is_flag=True, help="A line per request on standard error, without any text of it.")
@loading_options
def command(names: tuple[str, ...], models: tuple[str, ...], **options: Any) -> None:
    """Serve models to clients of OpenAI's and Anthropic's APIs, and of llama.cpp's server.

    \b
    nextword serve
    nextword serve runs/my-lstm --port 8081
    nextword serve -m smollm2-135m-instruct -m model.gguf --memory 4GB
    nextword serve /shared/model --workers ray
    """
    from ..serve.config import ServeConfig

    loading = load_config(options)
    memory = None if options["memory"] is None else parse_bytes(options["memory"], "--memory")
    same = ("host", "port", "alias", "parallel", "queue", "context", "max_tokens", "runs", "seed",
            "temperature", "allowed_hosts", "cors_origins", "shutdown_timeout", "access_log")  # fmt: skip
    config = ServeConfig(
        api_key=_key(options["api_key"], options["api_key_file"]),
        memory=memory,
        **{name: options[name] for name in same},
    )
    served = (*names, *models) or (DEFAULT_MODEL,)
    greet = partial(_greet, keyed=config.api_key is not None)
    if options["workers"]:
        from ..base.cluster import check_address
        from ..serve.replicas import serve_on_cluster

        cluster = options["cluster"] or "auto"
        check_address(cluster, "--workers ray")
        serve_on_cluster(served, config, loading, cluster, options["replicas"], greet)
        return
    for name in ("replicas", "cluster"):
        if options[name] is not None:
            raise UsageError(f"--{name} is for replicas on a cluster. Give --workers ray with it")
    from ..serve import serve

    serve(served, config, loading, greet)


def _key(given: str | None, file: str | None) -> str | None:
    if given is not None and file is not None:
        raise UsageError("the API key is given twice: with --api-key and with --api-key-file. Give one of them")
    if file is None:
        return given if given is not None else os.environ.get(KEY_VARIABLE) or None
    try:
        return read_text(file, _LARGEST_KEY).strip()
    except UnicodeDecodeError:
        raise UsageError(f"--api-key-file {file}: not text") from None
    except OSError as error:
        raise UsageError(f"--api-key-file {file}: {error.strerror}") from None


def _greet(address: str, about: About, keyed: bool) -> None:
    """Print the address, the memory it may take, a request to try, and the playground's address."""
    cache = f"with up to {format_bytes(about.cache_bytes)} for keys and values. Ctrl-C ends."
    if about.replicas is None:
        click.echo(f"Serving {about.model} at {address}/v1, {cache}")
    else:
        noun = "replica" if about.replicas == 1 else "replicas"
        click.echo(f"Serving {about.model} at {address}/v1 from {about.replicas} {noun}, each {cache}")
    key = ' -H "Authorization: Bearer $KEY"' if keyed else ""
    if about.chats:
        path, asked = "chat/completions", '"messages":[{"role":"user","content":"What is a token?"}]'
    else:
        path, asked = "completions", '"prompt":"Once upon a time"'
    body = f'{{"model":"{about.model}",{asked}}}'
    click.echo(f"curl {address}/v1/{path} -H 'Content-Type: application/json'{key} -d '{body}'")
    click.echo(f"Playground: {address}/")
