"""nextword chat: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import click

from ..base import NextwordError, UsageError, printable
from ..engine.sampling_params import SamplingParams, StopConfig
from ._console import as_shown
from ._errors import explain
from ._options import load_model, model_options, sampling_options, sampling_settings

if TYPE_CHECKING:
    from ..engine import LanguageModel
    from ..evals.openai_client import Server

Messages = list[dict[str, str]]
Speaker = Callable[[Messages, dict[str, Any]], Iterator[str]]  # messages and settings → the pieces of an answer

HELP = """\
/help            show this help
/system TEXT     start over with this system message
/reset           clear the conversation
/set NAME VALUE  change a setting: temperature, top_p, top_k, min_p, max_tokens, ...
/settings        show the settings
/quit            exit (or Ctrl-D)
Ctrl-C stops an answer; the part already shown is kept."""


@dataclass
class Conversation:
    """The messages so far, and the sampling settings."""

    speaker: Speaker
    settings: dict[str, Any]
    system: str | None = None
    messages: Messages = field(default_factory=list)

    def reset(self, system: str | None) -> None:
        self.system = system
        self.messages = [{"role": "system", "content": system}] if system else []

    def answer(self, text: str) -> Iterator[str]:
        """Yield the model's answer to `text` as it is generated. Both are kept, even if stopped early."""
        asked = [*self.messages, {"role": "user", "content": text}]
        pieces = self.speaker(asked, self.settings)
        said: list[str] = []
        try:
            for piece in pieces:
                text = piece if said else piece.lstrip()  # SentencePiece answers begin with a space
                if text:
                    said.append(text)
                    yield text
        finally:
            pieces.close()  # type: ignore[attr-defined]
            if said:
                self.messages = [*asked, {"role": "assistant", "content": "".join(said)}]


def local_speaker(model: LanguageModel) -> Speaker:
    """Answers of a model in this process."""
    if model.tokenizer.chat_template is None:
        raise UsageError(f"model {model.name!r} has no chat template. Use: nextword complete")

    def speak(messages: Messages, settings: dict[str, Any]) -> Iterator[str]:
        from ..engine import PromptTooLong
        from ..text import encode_chat

        prompt, _ = encode_chat(model.tokenizer, messages)
        try:
            stream = model.stream(prompt, **settings)
        except PromptTooLong as error:
            raise UsageError(f"{error.fact}. Shorten it, or clear the conversation with /reset") from None
        try:
            for token in stream:
                yield token.text
        finally:
            stream.close()

    return speak


def served_speaker(server: Server) -> Speaker:
    """Answers of a model behind an OpenAI-compatible server. Only settings that do something are sent."""
    neutral = asdict(SamplingParams()) | {"temperature": None}

    def speak(messages: Messages, settings: dict[str, Any]) -> Iterator[str]:
        sent = {name: value for name, value in settings.items() if value != neutral.get(name)}
        if "order" in sent:
            raise UsageError("--sampler-order is not a setting of OpenAI's API. Leave it out, or chat without --url")
        return server.stream_chat(messages, sent)

    return speak


@click.command(name="chat")
@model_options
@click.option("--url", metavar="URL", help="Chat with a model behind an OpenAI-compatible server; #NAME picks one.")
@click.option("--system", metavar="TEXT", help="System message.")
@click.option(
    "--max-tokens",
    type=int,
    default=512,
    show_default=True,
    metavar="N",
    help="Generate at most N tokens per answer.",
)
@click.option("-t", "--temperature", type=float, default=1.0, show_default=True, metavar="T", help="0 is greedy.")
@sampling_options
def command(url: str | None, system: str | None, max_tokens: int, temperature: float, **options: Any) -> None:
    """Chat with a model through its own chat template. /help lists the commands.

    \b
    nextword chat
    nextword chat --system "Answer in one sentence." -t 0.3
    nextword chat --url http://127.0.0.1:8080/v1
    echo "What is a token?" | nextword chat
    """
    settings = {"temperature": temperature, **sampling_settings(options)}
    SamplingParams(**settings)
    StopConfig(max_tokens)
    name, speaker = _speaker(url, options)
    conversation = Conversation(speaker, settings | {"max_tokens": max_tokens})
    conversation.reset(system)
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401  (line editing and history for input())
        click.echo(click.style(f"{printable(name)}. Type /help for commands, Ctrl-D to exit.", dim=True), err=True)
    for line in _lines():
        if not line.strip():
            continue
        if line.startswith("/"):
            if line.strip() in ("/quit", "/exit", "/bye"):
                return
            _command(conversation, line.strip())
        else:
            _answer(conversation, line)


def _speaker(url: str | None, options: dict[str, Any]) -> tuple[str, Speaker]:
    """Who answers, and the name of the model."""
    if url is None:
        model = load_model(options)
        return model.name, local_speaker(model)
    from ..evals.openai_client import Server

    server = Server(url)
    return server.model, served_speaker(server)


def _lines() -> Iterator[str]:
    """Lines the user types, until the end of input. Ctrl-C at the prompt clears the line, as in a shell."""
    terminal = sys.stdin.isatty()
    while True:
        try:
            yield input("> " if terminal and sys.stdout.isatty() else "")
        except EOFError:
            if terminal:
                click.echo()
            return
        except KeyboardInterrupt:
            if not terminal:
                raise
            click.echo("\n(Ctrl-D or /quit exits)", err=True)


def _answer(conversation: Conversation, line: str) -> None:
    pieces = conversation.answer(line)
    try:
        for piece in pieces:
            sys.stdout.write(as_shown(piece))
            sys.stdout.flush()
        sys.stdout.write("\n")
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
        click.echo(click.style("\n(stopped)", dim=True))
    except NextwordError as error:
        if not sys.stdin.isatty():
            raise
        click.echo(f"nextword: {explain(error)[0]}", err=True)
    finally:
        pieces.close()  # type: ignore[attr-defined]


def _command(conversation: Conversation, line: str) -> None:
    name, _, rest = line.partition(" ")
    rest = rest.strip()
    if name == "/help":
        click.echo(HELP)
    elif name == "/reset":
        conversation.reset(conversation.system)
    elif name == "/system":
        conversation.reset(rest or None)
    elif name == "/settings":
        for key, value in conversation.settings.items():
            click.echo(f"{key:<20} {value}")
    elif name == "/set":
        try:
            _set(conversation, rest)
        except NextwordError as error:
            click.echo(f"nextword: {explain(error)[0]}", err=True)
    else:
        click.echo(f"nextword: {name} is not a command. /help lists them", err=True)


def _set(conversation: Conversation, rest: str) -> None:
    key, _, text = rest.partition(" ")
    key = key.replace("-", "_")
    known = {name for name in conversation.settings if name not in ("logit_bias", "order")}
    if key not in known:
        raise UsageError(f"{key!r} is not a setting. Known: {', '.join(sorted(known))}")
    whole = key in ("max_tokens", "top_k", "seed")
    try:
        value = int(text) if whole else float(text)
    except ValueError:
        raise UsageError(
            f"{key} takes a {'whole ' if whole else ''}number, as in: /set {key} {1 if whole else 0.7}"
        ) from None
    changed = conversation.settings | {key: value}
    StopConfig(changed["max_tokens"])
    SamplingParams(**{name: setting for name, setting in changed.items() if name != "max_tokens"})
    conversation.settings = changed
