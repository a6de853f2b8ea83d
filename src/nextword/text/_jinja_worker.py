"""The worker process of jinja.py: JSON lines in, JSON lines out. Run as a script, never imported.

Arguments: bytes of memory, seconds of idleness after which to end, folders of jinja2 and markupsafe.
"""

import json
import os
import resource
import select
import sys
from contextlib import suppress
from datetime import datetime
from functools import lru_cache

MEMORY, IDLE = int(sys.argv[1]), float(sys.argv[2])
sys.path[:0] = sys.argv[3:]

from jinja2 import StrictUndefined, Template, TemplateError, ext, nodes  # noqa: E402
from jinja2.sandbox import ImmutableSandboxedEnvironment  # noqa: E402

CPU_SECONDS = 3  # the parent kills it earlier; this is for a parent that has died


class Generation(ext.Extension):
    """{% generation %}…{% endgeneration %} marks what the assistant wrote; rendering just passes it on."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser):  # type: ignore[no-untyped-def]
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


def raise_exception(message: str) -> None:
    raise TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):  # type: ignore[no-untyped-def]
    """As in transformers: jinja2's own filter escapes HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def environment(strict: bool) -> ImmutableSandboxedEnvironment:
    if strict:  # templates of tasks
        return ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


@lru_cache(maxsize=4)  # an evaluation renders one template thousands of times
def compiled(env: ImmutableSandboxedEnvironment, source: str) -> Template:
    return env.from_string(source)


def answer(environments: dict[bool, ImmutableSandboxedEnvironment], line: bytes) -> dict[str, str]:
    if not line.strip():
        return {}
    try:
        request = json.loads(line)
        template = compiled(environments[request["strict"]], request["template"])
        return {"text": template.render(request["variables"])}
    except MemoryError:
        return {"error": "it needs too much memory."}
    except RecursionError:
        return {"error": "it nests too deep."}
    except Exception as problem:
        line_number = getattr(problem, "lineno", None)
        where = f" (line {line_number})" if line_number else ""
        return {"error": " ".join(f"{problem}{where}".split())[:500] or type(problem).__name__}


def limit_cpu() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))


def main() -> None:
    with suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    environments = {strict: environment(strict) for strict in (False, True)}
    waiting = b""
    while select.select([0], [], [], IDLE)[0]:
        piece = os.read(0, 1 << 20)
        if not piece:
            return
        waiting += piece
        while b"\n" in waiting:
            line, waiting = waiting.split(b"\n", 1)
            limit_cpu()
            out = memoryview(json.dumps(answer(environments, line)).encode() + b"\n")
            while out:
                out = out[os.write(1, out) :]


main()
