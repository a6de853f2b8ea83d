"""nextword complete: complete a prompt."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ..base import UsageError
from ..engine.sampling_params import SamplingParams, StopConfig
from ._console import as_shown
from ._options import load_model, model_options, read_prompt, sampling_options, sampling_settings

if TYPE_CHECKING:
    from ..engine import Completion, LanguageModel, Stream

DEFAULT_TEMPLATE = "Input: {input}\nOutput: {output}"


@click.command(name="complete")
@click.argument("prompt", required=False)
@click.option("-f", "--file", metavar="FILE", help="Read the prompt from a file; - is standard input.")
@model_options
@click.option(
    "--max-tokens",
    type=int,
    default=StopConfig.max_tokens,
    show_default=True,
    metavar="N",
    help="Generate at most N tokens.",
)
@click.option(
    "-t",
    "--temperature",
    type=float,
    default=1.0,
    show_default=True,
    metavar="T",
    help="0: greedy; 1: the model's own distribution.",
)
@click.option("--greedy", is_flag=True, help="Always choose the most likely token; same as --temperature 0.")
@sampling_options
@click.option("--stop", multiple=True, metavar="TEXT", help="Stop before this text (\\n is a newline). Repeatable.")
@click.option("-n", "count", type=int, default=1, metavar="N", help="Number of completions, computed together.")
@click.option(
    "--example",
    "examples",
    multiple=True,
    metavar="'IN => OUT'",
    help="A few-shot example to put before the prompt. Repeatable.",
)
@click.option("--template", metavar="TEXT", help="Template of examples and prompt, with {input} and {output}.")
@click.option("--separator", default="\\n\\n", show_default=True, metavar="TEXT", help="Text between examples.")
@click.option("--show-prompt", is_flag=True, help="Print the prompt, token by token, to standard error first.")
@click.option(
    "--truncate", type=click.Choice(["left"]), help="Drop the beginning of a prompt that exceeds the context."
)
@click.option("--json-schema", metavar="FILE", help="Generate JSON that is valid under the JSON schema in FILE.")
@click.option("--regex", metavar="PATTERN", help="Generate text that PATTERN (Rust syntax) matches in full.")
@click.option(
    "--choices", metavar="A,B,...", help="Generate one of these texts; use a JSON array if they contain commas."
)
@click.option(
    "--speculate",
    type=int,
    default=0,
    metavar="K",
    help="Draft up to K tokens per step by prompt lookup: the same tokens, in fewer steps.",
)
@click.option(
    "--probabilities",
    "alternatives",
    type=int,
    is_flag=False,
    flag_value=5,
    default=0,
    metavar="K",
    help="Also show the K most likely tokens at every position (5 if K is omitted).",
)
@click.option(
    "--json", "as_json", is_flag=True, help="One JSON object: text, tokens, probabilities, settings, timings."
)
def command(prompt: str | None, file: str | None, **options: Any) -> None:
    """Complete PROMPT with a language model.

    \b
    nextword complete "The history of the printing press begins with"
    nextword complete --greedy --max-tokens 20 --json "I like to eat"
    echo "Once upon a time" | nextword complete -t 0.7 -n 3
    nextword complete --example "great! => positive" --example "a waste => negative" \\
        --template "Review: {input}\\nSentiment: {output}" "terrible"
    nextword complete --greedy --choices " positive, negative" "This film bored me. Its review is"
    """
    from ._structure import structure_from_options

    if options["alternatives"] < 0:
        raise UsageError(f"--probabilities is {options['alternatives']}; it takes a whole number of at least 1")
    temperature = 0.0 if options["greedy"] else options["temperature"]
    settings = {"temperature": temperature, **sampling_settings(options)}
    stop = tuple(_unescape(text) for text in options["stop"])
    sampling = SamplingParams(**settings)  # settings are checked before a model is loaded
    StopConfig(options["max_tokens"], stop)
    structure = structure_from_options(options["json_schema"], options["regex"], options["choices"])
    if options["count"] < 1:
        raise UsageError(f"-n is {options['count']}; it takes a whole number of at least 1")
    text = _build_prompt(read_prompt(prompt, file), options)
    model = load_model(options)
    if options["show_prompt"]:
        _show_prompt(model, text)
    request = {
        "n": options["count"],
        "max_tokens": options["max_tokens"],
        "stop": stop,
        "truncate": options["truncate"],
        "top_logprobs": options["alternatives"],
        "structure": structure,
        "speculate": options["speculate"],
    }
    completion = _stream(model, text, request | settings)
    live = options["count"] == 1 and not options["as_json"]
    if live:
        _echo_prompt(text)
    for token in completion:
        if live:
            sys.stdout.write(as_shown(token.text))
            sys.stdout.flush()
    if live:
        sys.stdout.write("\n")
    completions = completion.completions(text)
    _report(model, completions, sampling, options)
    if structure is not None:
        _warn_of_cut(completions)


def _stream(model: LanguageModel, text: str, settings: dict[str, Any]) -> Stream:
    from ..engine import PromptTooLong

    try:
        return model.stream(text, **settings)
    except PromptTooLong as error:
        raise UsageError(f"{error.fact}. Shorten it, or cut its beginning with --truncate left") from None


def _build_prompt(prompt: str, options: dict[str, Any]) -> str:
    """The prompt, put into the template after its examples, if any."""
    if not options["examples"] and options["template"] is None:
        return prompt
    from ..evals import Template, few_shot, parse_shot

    template = Template.parse(_unescape(options["template"] or DEFAULT_TEMPLATE))
    shots = [parse_shot(example) for example in options["examples"]]
    return few_shot(template, shots, {"input": prompt}, _unescape(options["separator"])).text


def _unescape(text: str) -> str:
    r"""\n and \t as a shell user writes them; \\ is a backslash."""
    return text.replace("\\\\", "\0").replace("\\n", "\n").replace("\\t", "\t").replace("\0", "\\")


def _report(
    model: LanguageModel, completions: list[Completion], sampling: SamplingParams, options: dict[str, Any]
) -> None:
    if options["as_json"]:
        from ._console import emit_json

        emit_json(_as_json(model, completions, sampling, options))
        return
    if len(completions) > 1:
        for completion in completions:
            click.echo(click.style(f"--- {completion.sample_index + 1} ---", dim=True))
            click.echo(as_shown(completion.text))
    if options["alternatives"]:
        from ._pictures import print_probabilities

        for completion in completions:
            print_probabilities(completion, sampling)


def _as_json(
    model: LanguageModel, completions: list[Completion], sampling: SamplingParams, options: dict[str, Any]
) -> dict[str, Any]:
    timings = completions[0].timings
    settings = asdict(sampling) | {
        "seed": completions[0].seed,
        "max_tokens": options["max_tokens"],
        "stop": options["stop"],
        "n": options["count"],
        **{name: options[name] for name in ("truncate", "json_schema", "regex", "choices", "speculate")},
    }
    return {
        "model": model.name,
        "precision": model.loaded.precision,
        "prompt": completions[0].prompt,
        "prompt_ids": completions[0].prompt_ids,
        "prompt_tokens": [model.tokenizer.token_text(token) for token in completions[0].prompt_ids],
        "completions": [
            {
                "text": each.text,
                "finish_reason": each.finish,
                "ids": each.ids,
                "logprob_nats": each.logprob,
                "tokens": [asdict(token) for token in each.tokens],
            }
            for each in completions
        ],
        "settings": settings,
        "timings": asdict(timings)
        | {
            "prefill_tokens_per_second": timings.prefill_tokens_per_second,
            "decode_tokens_per_second": timings.decode_tokens_per_second,
        },
    }


def _warn_of_cut(completions: list[Completion]) -> None:
    """Warn on standard error about completions that ended before their structure was complete."""
    limits = {"length": "--max-tokens was reached", "context": "the model's context is full"}
    for completion in completions:
        if completion.finish in limits:
            which = f"completion {completion.sample_index + 1}" if len(completions) > 1 else "the text"
            click.echo(f"nextword: {which} is incomplete: {limits[completion.finish]}", err=True)


def _show_prompt(model: LanguageModel, prompt: str) -> None:
    """The prompt on standard error, one token and its id per line; then all of it, as the model reads it."""
    ids = model.encode(prompt)
    for token in ids:
        click.echo(f"{token:>8}  {model.tokenizer.token_text(token)!r}", err=True)
    limit = (
        f" of a context of {model.spec.context:,}" if model.spec.kind == "transformer" else "; its context is unlimited"
    )
    click.echo(f"{len(ids)} tokens{limit}", err=True)


def _echo_prompt(prompt: str) -> None:
    """On a terminal the completion follows its prompt, which is dim."""
    if sys.stdout.isatty():
        click.echo(click.style(as_shown(prompt), dim=True), nl=False)
        sys.stdout.flush()
