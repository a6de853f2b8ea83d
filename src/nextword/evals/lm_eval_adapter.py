"""lm-evaluation-harness's model interface on nextword's engine, and running its tasks.

    nextword eval --lm-eval arc_easy,hellaswag --shots 8
    python -m nextword.evals.lm_eval_adapter --model nextword --model_args pretrained=gpt2 --tasks arc_easy

lm_eval looks up models in its own registry and has no entry point for others. The second line is therefore lm_eval's
command line, started with `nextword` registered; in Python, importing this module registers it.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from ..base import NextwordError, RunError, UsageError
from ..engine import LanguageModel, Request, SamplingParams, StopConfig, load
from ..engine.loading import LoadConfig, load_weights
from ..text import render_chat
from ..weights.catalogue import DEFAULT_MODEL
from .running import answered, descending
from .scoring import likelihood, score_requests
from .task import Encoded

try:
    import lm_eval
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.config.evaluate_config import EvaluatorConfig
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, handle_non_serializable, make_disjoint_window
    from tqdm import tqdm
except ImportError as error:
    raise UsageError(
        f"lm-evaluation-harness cannot be imported ({error}). Install it: pip install 'nextword[lm-eval]'"
    ) from None

_LOG = logging.getLogger(__name__)
_GROUP = re.compile(rb"^group:", re.MULTILINE)  # a file that names other tasks
_NO_LIMIT = 2**31  # tokens: the "context" of a model without a limit
_SAMPLING = (
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
)  # generation options that are those of `SamplingParams`


@register_model("nextword")
class NextwordLM(TemplateLM):
    """lm_eval's model interface. `pretrained` is a name for `nextword.load`, or a loaded model.

    As with lm_eval's `hf` model, names of control tokens in a text become control tokens, and texts longer than the
    context are truncated on the left. `batch_size` and `max_batch_size` have no effect: the engine fills its own
    batches. `device` "cuda:0", lm_eval's default, means auto.
    """

    def __init__(
        self,
        pretrained: str | PathLike[str] | LanguageModel = DEFAULT_MODEL,
        dtype: str = "auto",
        device: str | None = None,
        kv_dtype: str = "auto",
        threads: int | None = None,
        batch_size: object = None,
        max_batch_size: object = None,
    ) -> None:
        super().__init__()
        if not isinstance(pretrained, LanguageModel):
            device = "auto" if device in (None, "cuda:0") else device
            pretrained = load(pretrained, dtype, device, kv_dtype, threads)
        self.model: LanguageModel = pretrained

    @property
    def max_length(self) -> int:
        """Tokens that fit the model's context."""
        return self.model.engine.backend.context or _NO_LIMIT

    @property
    def eot_token_id(self) -> int:
        tokenizer = self.model.tokenizer
        token = tokenizer.token_id(tokenizer.special.texts.get("eos_token", ""))
        if token is None and not tokenizer.stop_ids:
            raise UsageError(f"{self.model.name} has no end-of-text token, which lm_eval needs. Use another model")
        return min(tokenizer.stop_ids) if token is None else token

    @property
    def prefix_token_id(self) -> int:
        bos = self.model.tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.model.name.replace("/", "__")

    def get_model_info(self) -> dict[str, str]:
        return {"model_name": self.model.name, "model_dtype": self.model.loaded.precision}

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The template's Jinja source; None to use none."""
        if not chat_template:
            return None
        own = self.model.tokenizer.chat_template
        if own is None:
            raise UsageError(f"{self.model.name} has no chat template. Leave the chat template off")
        return own

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A chat as text; without `add_generation_prompt` the model continues its last message."""
        try:
            text = render_chat(self.model.tokenizer, chat_history, add_generation_prompt)
        except UsageError as error:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            _LOG.warning("the chat template does not support a system message, which is omitted: %s", error)
            return self.apply_chat_template(rest, add_generation_prompt)
        return text if add_generation_prompt else self._up_to_answer(text, chat_history[-1]["content"])

    def _up_to_answer(self, text: str, answer: str) -> str:
        """A rendered chat, cut after its last answer, as in transformers (`continue_final_message`)."""
        bare = answer.strip()
        start = text.rfind(bare)
        if start < 0:
            raise UsageError(
                f"the chat template of {self.model.name} does not render the start of an answer ({bare!r})"
            )
        whole = answer.lstrip()
        kept = whole if text.startswith(whole, start) else bare  # a template may remove the spaces around it
        return text[: start + len(kept)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Token ids, after the bos token if the model was trained with one."""
        if add_special_tokens is False:
            return self.model.tokenizer.encode(string, special=True)
        return self.model.encode(string, special=True)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str] | None, list[int], list[int]]], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        """ln p of each continuation after its context, and whether greedy decoding would produce it.

        `requests` are (texts, context tokens, continuation tokens); equal ones are scored once, and contexts are
        ordered to share the longest prefixes.
        """
        encoded = [self._fitted(context, continuation) for _, context, continuation in requests]
        if longer := sum(len(e.context) < len(context) for e, (_, context, _) in zip(encoded, requests, strict=True)):
            _LOG.warning("%d requests are longer than the context of %d tokens and are truncated on the left", longer,
                         self.max_length)  # fmt: skip
        rows: dict[Encoded, list[int]] = {}
        for row, pair in enumerate(encoded):
            rows.setdefault(pair, []).append(row)
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        with _progress("loglikelihood", len(requests), disable_tqdm) as progress:
            for pair, result in self._scores(encoded):
                for row in rows[pair]:
                    results[row] = result
                    if (texts := requests[row][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", texts, result)
                progress.update(len(rows[pair]))
        return results

    def _scores(self, encoded: Sequence[Encoded]) -> Iterator[tuple[Encoded, tuple[float, bool]]]:
        for handle in answered(self.model.engine, score_requests(encoded)):
            for continuation, score in zip(handle.request.continuations, handle.scores, strict=True):
                found = likelihood(score)
                yield Encoded(handle.request.context, continuation), (found.logprob, found.greedy)

    def _fitted(self, context: list[int], continuation: list[int]) -> Encoded:
        """The pair, truncated on the left so that all tokens but the last fit the context."""
        if not continuation or len(continuation) > self.max_length:
            raise UsageError(
                f"a continuation has {len(continuation):,} tokens; lm_eval's tasks take 1 to {self.max_length:,}, the"
                " model's context"
            )
        keep = self.max_length + 1 - len(continuation)
        return Encoded(tuple(context[-keep:]), tuple(continuation))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """ln p of complete texts, in windows of the context's length: each token is predicted once."""
        windows = [
            (row, *make_disjoint_window(window))
            for row, request in enumerate(requests)
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]), prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length, context_len=1,
            )
        ]  # fmt: skip
        scores = self._loglikelihood_tokens([(None, before, tokens) for _, before, tokens in windows], disable_tqdm)
        totals = [0.0] * len(requests)
        for (row, _, _), (logprob, _) in zip(windows, scores, strict=True):
            totals[row] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Generate after each prompt. Equal requests that sample get different samples."""
        same: dict[str, list[int]] = {}
        for row, request in enumerate(requests):
            same.setdefault(json.dumps(request.args, sort_keys=True), []).append(row)
        completions = [self._completion(requests[rows[0]].args, len(rows)) for rows in same.values()]
        rows_of = {id(completion): rows for completion, rows in zip(completions, same.values(), strict=True)}
        texts = [""] * len(requests)
        with _progress("generate_until", len(requests), disable_tqdm) as progress:
            for handle in answered(self.model.engine, descending(completions)):
                rows = rows_of[id(handle.request)]
                for number, row in enumerate(rows):
                    tokens = handle.tokens[number % len(handle.tokens)]
                    texts[row] = "".join(token.text for token in tokens)
                    self.cache_hook.add_partial("generate_until", requests[row].args, texts[row])
                progress.update(len(rows))
        return texts

    def _completion(self, arguments: tuple[str, dict[str, Any]], count: int) -> Request:
        """The engine's request for `count` answers to a prompt, truncated on the left if necessary."""
        prompt, given = arguments[0], normalize_gen_kwargs(arguments[1])
        max_tokens, until, sampled = given.pop("max_gen_toks"), given.pop("until"), given.pop("do_sample")
        temperature = given.pop("temperature", 1.0) if sampled else 0.0
        given.pop("temperature", None)
        if unknown := [name for name in given if name not in _SAMPLING and (name, given[name]) != ("num_beams", 1)]:
            raise UsageError(f"generation option {unknown[0]} is not supported. Supported: temperature, {_SAMPLING}")
        if max_tokens >= self.max_length:
            raise UsageError(
                f"max_gen_toks is {max_tokens}; the model's context holds {self.max_length} tokens, at least one of"
                " them for the prompt. Use --max-tokens (lm_eval: --gen_kwargs max_gen_toks=N)"
            )
        settings = {name: given[name] for name in _SAMPLING if sampled and name in given}
        ids = self.tok_encode(prompt) or [self.prefix_token_id]
        return Request(
            tuple(ids[max_tokens - self.max_length :]),
            SamplingParams(temperature=temperature, seed=0, **settings),
            StopConfig(max_tokens, tuple(stop for stop in until if stop)),
            n=count if sampled else 1,
        )


def _progress(what: str, total: int, disable: bool) -> Any:
    """A progress bar as in lm_eval's own models, on a terminal."""
    return tqdm(total=total, desc=f"Running {what} requests", disable=disable or None)


@dataclass(frozen=True)
class LMEvalOptions:
    """How tasks are run; None: the task's own. Names and default seeds are lm_eval's."""

    num_fewshot: int | None = None
    limit: int | None = None  # the first items of each task
    chat_template: bool = False  # shots are turns of the conversation
    system: str | None = None
    max_tokens: int | None = None  # per answer
    seed: int = 1234  # of few-shot sampling
    include_path: Path | None = None  # a folder with the user's task files
    out: Path | None = None  # a folder, for lm_eval's results_*.json and samples_*.jsonl in one named after the model


@dataclass(frozen=True)
class MetricRow:
    """One number of one task or group."""

    task: str
    filter: str
    num_fewshot: int | None
    metric: str
    value: float
    stderr: float | None
    higher_is_better: bool | None


@dataclass(frozen=True)
class LMEvalResult:
    """lm_eval's own results."""

    results: dict[str, Any]

    @property
    def rows(self) -> list[MetricRow]:
        """The numbers of all tasks and groups, in lm_eval's order."""
        return [row for task in self.results["results"] for row in self._of(task)]

    def _of(self, task: str) -> Iterator[MetricRow]:
        numbers = self.results["results"][task]
        higher = self.results.get("higher_is_better", {}).get(task, {})
        for key, value in numbers.items():
            metric, _, name = key.partition(",")
            if not name or metric.endswith("_stderr"):
                continue
            stderr = numbers.get(f"{metric}_stderr,{name}")
            yield MetricRow(
                task, name, self.results["n-shot"].get(task), metric, value,
                float(stderr) if isinstance(stderr, float) else None, higher.get(metric),
            )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """All of it, as JSON can hold it."""
        return json.loads(json.dumps(self.results, default=handle_non_serializable))  # type: ignore[no-any-return]


def run_tasks(
    model: str | LanguageModel,
    tasks: Sequence[str],
    options: LMEvalOptions | None = None,
    config: LoadConfig | None = None,
) -> LMEvalResult:
    """Run tasks of lm_eval: names of tasks, groups or tags (with wildcards), or paths of .yaml files.

    Tasks are code: their Python functions run here. `model` is as for `nextword.load`, `config` as for `load_weights`.
    Raises UsageError for an unknown task, before the model is loaded, and RunError for failures while lm_eval runs one,
    such as a data set that cannot be downloaded.
    """
    options = options or LMEvalOptions()
    try:
        known, manager = _known(tasks, options.include_path)
        opened = LanguageModel(load_weights(model, config)) if isinstance(model, str) else model
        return LMEvalResult(_evaluate(NextwordLM(opened), known, manager, options))
    except NextwordError:
        raise
    except Exception as error:  # a task's code may raise anything
        first = (str(error).strip().splitlines() or [""])[0]
        raise RunError(f"lm-evaluation-harness failed: {type(error).__name__}: {first}") from error


def _evaluate(model: NextwordLM, tasks: list[Any], manager: Any, options: LMEvalOptions) -> dict[str, Any]:
    tracker = None if options.out is None else EvaluationTracker(output_path=str(options.out))
    results: dict[str, Any] = lm_eval.simple_evaluate(
        model,
        model_args={"pretrained": model.model.name},  # names the folder of the results, and is recorded in them
        tasks=tasks,
        num_fewshot=options.num_fewshot,
        limit=options.limit,
        log_samples=tracker is not None,
        evaluation_tracker=tracker,
        system_instruction=options.system,
        apply_chat_template=options.chat_template,
        fewshot_as_multiturn=options.chat_template,
        gen_kwargs=None if options.max_tokens is None else {"max_gen_toks": options.max_tokens},
        task_manager=manager,
        fewshot_random_seed=options.seed,
    )
    if tracker is not None:
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        for task in results["configs"]:
            tracker.save_results_samples(task_name=task, samples=samples[task])
    return results


def _known(tasks: Sequence[str], include_path: Path | None) -> tuple[list[Any], Any]:
    """The tasks, found as by lm_eval's command line, and their loader."""
    files = [Path(task).absolute() for task in tasks if task.endswith(".yaml")]
    for file in files:
        if not file.is_file():
            raise UsageError(f"task file {file.name} does not exist")
    folder = None if include_path is None else str(include_path)
    if len(files) == len(tasks) and not any(_GROUP.search(file.read_bytes()) for file in files):
        # without lm_eval's 14,000 own tasks, which take five seconds to look through
        return list(map(str, files)), TaskManager(include_path=folder, include_defaults=False)
    config = EvaluatorConfig(tasks=list(tasks), include_path=folder)
    try:
        manager = config.process_tasks({})
    except ValueError as error:
        raise UsageError(f"{error}. lm_eval's own: python -m nextword.evals.lm_eval_adapter ls tasks") from None
    return list(config.tasks), manager


def main() -> None:
    """lm_eval's own command line, with `--model nextword` among its models."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except NextwordError as error:
        print(f"nextword: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
