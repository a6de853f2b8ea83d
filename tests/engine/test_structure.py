"""Structured output: whatever the logits, a completion that ends is what its structure says."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_backend import FakeBackend
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

import nextword
from nextword.base import RunError, UsageError
from nextword.data import train_tokenizer
from nextword.engine import Engine, Request, SamplingParams, StopConfig, Structure
from nextword.engine.handles import CompletionHandle
from nextword.engine.structure import LARGEST, Grammars, Matcher
from nextword.text import Tokenizer

PADDING = 37  # rows of the logits beyond the tokenizer's ids
WORDS = ["alpha", "beta", "be", "a", "gamma ray", 'with "quotes"', "comma, and\nline", "naïve", "日本", "😀"]
TOKENIZER = train_tokenizer([json.dumps({word: [1, 23, True, word * 2]}) for word in WORDS] * 9, "bpe", 420)


class Letters:
    """Tokens that are written out here; id 0 ends a text if one may."""

    def __init__(self, *tokens: str, stops: bool = True) -> None:
        self.tokens = [b"</s>", *(token.encode() for token in tokens)]
        self.stop_ids = frozenset({0} if stops else ())
        self.special = TOKENIZER.special if stops else type(TOKENIZER.special)()

    def token_bytes(self, token: int) -> bytes:
        return self.tokens[token] if token < len(self.tokens) else b""

    def token_text(self, token: int) -> str:
        return self.token_bytes(token).decode()

    def stream(self) -> Any:
        return Stream(self)


class Stream:
    def __init__(self, tokenizer: Letters) -> None:
        self.push = tokenizer.token_text

    def flush(self) -> str:
        return ""


def engine(tokenizer: Any = TOKENIZER, vocabulary: int = TOKENIZER.vocabulary + PADDING) -> Engine:
    backend = FakeBackend(vocabulary=vocabulary, step_tokens=64)
    return Engine(backend, tokenizer, cache_bytes=4000 * backend.page_bytes)


ENGINE = engine()


def request(structure: Structure | None, seed: int = 0, tokens: int = 300, **more: Any) -> Request:
    return Request((1, 2, seed % 50), SamplingParams(seed=seed, **more), StopConfig(tokens), structure=structure)


def text_of(handle: CompletionHandle, sample: int = 0) -> str:
    return "".join(step.text for step in handle.tokens[sample])


def ended(handle: CompletionHandle) -> bool:
    """Whether the structure is whole, and not cut at the most tokens that were asked for."""
    [finish] = handle.finish_reasons
    assert finish in ("stop", "end_of_text", "length")
    return finish != "length"


# ---- what is written


def random_schema(rng: random.Random, depth: int = 2) -> dict[str, Any]:
    kinds = ["null", "boolean", "integer", "number", "string", "enum", "const", "pattern", "ipv4"]
    kind = rng.choice([*kinds, *(["array", "object", "anyOf", "tuple"] * 3 if depth else [])])
    if kind in ("null", "boolean", "number"):
        return {"type": kind}
    if kind == "integer":
        low = rng.randrange(-1000, 1000)
        return {"type": "integer", "minimum": low, "maximum": low + rng.randrange(500)}
    if kind == "string":
        return {"type": "string", "minLength": rng.randrange(3), "maxLength": rng.randrange(3, 8)}
    if kind == "enum":
        return {"enum": rng.sample([*WORDS, 1, 2.5, None, True, [1, "a"], {"a": 1}], 4)}
    if kind == "const":
        return {"const": rng.choice([*WORDS, {"b": [1, 2]}])}
    if kind == "pattern":
        return {"type": "string", "pattern": rng.choice([r"^[a-c]{2,4}$", r"^(x|yz)+\d$", "^[A-Z]{1,3}-[0-9]{2}$"])}
    if kind == "ipv4":
        return {"type": "string", "format": "ipv4"}
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth - 1), "minItems": rng.randrange(2), "maxItems": 3}
    if kind == "tuple":
        items = [random_schema(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
        return {"type": "array", "prefixItems": items, "items": False, "minItems": rng.randrange(len(items) + 1)}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(2)]}
    names = rng.sample(WORDS, rng.randrange(1, 4))
    properties = {name: random_schema(rng, depth - 1) for name in names}
    required = rng.sample(names, rng.randrange(len(names) + 1))
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


@given(seed=st.integers(0, 2**32))
def test_json_that_ends_is_valid_under_its_schema(seed: int) -> None:
    schema = random_schema(random.Random(seed))
    handle = ENGINE.submit(request(Structure(json_schema=schema), seed, temperature=1 + seed % 3)).wait()
    if ended(handle):
        content = json.loads(text_of(handle))
        Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(content)
        assert "\n" not in text_of(handle)


def test_random_schemas_are_of_all_kinds_and_nearly_all_completions_end() -> None:
    handles = [ENGINE.submit(request(Structure(json_schema=random_schema(random.Random(n))), n)) for n in range(60)]
    texts = [text_of(handle.wait()) for handle in handles if ended(handle.wait())]
    assert len(texts) > 50
    assert {type(json.loads(text)) for text in texts} >= {str, int, list, dict, type(None)}


def random_regex(rng: random.Random, depth: int = 2) -> str:
    if not depth:
        return rng.choice(["a", "b", r"\d", "[a-f]", "[^a-z]", "é", "日", r"\.", "/", '"', " ", ".", "xyz"])
    parts = [random_regex(rng, depth - 1) for _ in range(rng.randrange(1, 4))]
    joined = "".join(parts) if rng.random() < 0.6 else "|".join(parts)
    return f"(?:{joined})" + rng.choice(["", "", "?", "{2}", "{1,3}", "{0,2}"]) + rng.choice(["", "z"])


@given(seed=st.integers(0, 2**32))
def test_a_regex_matches_the_whole_of_a_text_that_ends(seed: int) -> None:
    regex = random_regex(random.Random(seed)) + "!?#"
    handle = ENGINE.submit(request(Structure(regex=regex), seed, temperature=2)).wait()
    assert ended(handle)
    assert re.fullmatch(regex, text_of(handle))


@given(choices=st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_exactly_one_of_the_choices_is_written(choices: list[str], seed: int) -> None:
    handle = ENGINE.submit(request(Structure(choices=tuple(choices)), seed)).wait()
    assert ended(handle)
    assert text_of(handle) in choices


def test_a_choice_that_another_begins_with_can_be_drawn_and_so_can_the_other() -> None:
    structure = Structure(choices=("a", "ab", "abc", "b"))
    handles = ENGINE.complete(
        request(structure, seed, logit_bias={next(iter(TOKENIZER.stop_ids)): 3}) for seed in range(80)
    )
    assert {text_of(handle) for handle in handles} == {"a", "ab", "abc", "b"}
    reasons = {text_of(handle): handle.finish_reasons[0] for handle in handles}
    assert (reasons["a"], reasons["abc"]) == ("end_of_text", "stop")


def test_a_grammar_of_balanced_brackets_is_followed() -> None:
    structure = Structure(grammar='start: pair+\npair: "(" pair? ")" | "[" pair? "]"')
    for seed in range(20):
        handle = ENGINE.submit(request(structure, seed, tokens=60)).wait()
        text = text_of(handle)
        while (shorter := text.replace("()", "").replace("[]", "")) != text:
            text = shorter
        assert not text or not ended(handle)


# ---- the mask


def allowed(matcher: Matcher) -> set[int]:
    return set(np.flatnonzero(np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")).tolist())


@given(seed=st.integers(0, 2**32))
def test_the_mask_holds_exactly_the_tokens_with_which_a_choice_goes_on(seed: int) -> None:
    rng = random.Random(seed)
    choices = [w.encode() for w in ("".join(rng.choices(["a", "al", "ph", "be", "ta", "é"], k=4)) for _ in range(6))]
    matcher = Grammars(TOKENIZER, TOKENIZER.vocabulary + PADDING).matcher(
        Structure(choices=tuple(choice.decode() for choice in choices))
    )
    pieces = {token: TOKENIZER.token_bytes(token) for token in range(TOKENIZER.vocabulary)}
    pieces = {token: piece for token, piece in pieces.items() if token not in TOKENIZER.special.control}
    text = b""
    while True:
        follow = {t for t, piece in pieces.items() if any(choice.startswith(text + piece) for choice in choices)}
        assert matcher.finished == (not follow)
        if matcher.finished:
            break
        assert allowed(matcher) == follow | (set(TOKENIZER.stop_ids) if text in choices else set())
        token = rng.choice(sorted(follow))
        text += pieces[token]
        matcher.accept(token)
    assert text in choices


def test_ids_without_a_token_and_control_tokens_are_never_allowed() -> None:
    everything = Structure(regex="(?s:.)*")
    size = TOKENIZER.vocabulary + PADDING
    matcher = Grammars(TOKENIZER, size).matcher(everything)
    assert matcher.mask().dtype == np.uint32
    assert matcher.mask().size == -(-size // 32)
    assert max(allowed(matcher)) < TOKENIZER.vocabulary
    assert allowed(matcher) & TOKENIZER.special.control == TOKENIZER.stop_ids
    narrow = Grammars(TOKENIZER, 100).matcher(everything)
    assert allowed(narrow) == {token for token in allowed(matcher) if token < 100}
    assert narrow.mask().size == 4


def test_not_even_a_grammar_that_names_ids_allows_those_without_a_token() -> None:
    grammars = Grammars(Letters("a", "b", stops=False), 30)
    matcher = grammars.matcher(Structure(grammar='start: ("a" | <[2-29]>)*'))
    assert allowed(matcher) == {1, 2}


def test_without_a_stop_token_a_text_ends_where_nothing_can_follow() -> None:
    letters = Letters("a", "b", stops=False)
    handle = engine(letters, 32).submit(request(Structure(regex="a{1,3}b"))).wait()
    assert handle.finish_reasons == ("stop",)
    assert re.fullmatch("a{1,3}b", text_of(handle))


# ---- other requests, drafts, failures


def mixed_requests() -> list[Request]:
    structures = [
        Structure(json_schema=random_schema(random.Random(3))),
        None,
        Structure(regex=r"(\d{2}, ){3,9}end"),
        Structure(choices=("alpha", "beta", "be")),
    ]
    return [request(structures[n % 4], n, tokens=40, temperature=n % 3) for n in range(16)]


def test_a_completion_is_the_same_alone_and_among_others_with_and_without_structure() -> None:
    together = ENGINE.complete(mixed_requests())
    for one, handle in zip(mixed_requests(), together, strict=True):
        assert engine().submit(one).wait().tokens == handle.tokens


def test_each_of_several_samples_follows_the_structure_on_its_own() -> None:
    structure = Structure(choices=tuple(WORDS))
    handle = ENGINE.submit(Request((1,), SamplingParams(seed=1), structure=structure, n=8)).wait()
    texts = [text_of(handle, sample) for sample in range(8)]
    assert set(texts) <= set(WORDS)
    assert len(set(texts)) > 2


@pytest.mark.parametrize("temperature", [0, 1])
def test_drafts_do_not_change_the_tokens(temperature: float) -> None:
    structure = Structure(regex=r"([ab]\.alpha beta gamma; ){12}")
    plain = Request((1, 2), SamplingParams(seed=5, temperature=temperature), StopConfig(400), structure=structure)
    drafted = Request(plain.prompt, plain.sampling, plain.stop, structure=structure, speculate=4)
    one, other = ENGINE.complete([plain, drafted])
    assert one.tokens == other.tokens
    assert one.finish_reasons == ("stop",)
    assert other.accepted > 0


def test_a_structure_longer_than_max_tokens_ends_with_length() -> None:
    handle = ENGINE.submit(request(Structure(regex="a{500}"), tokens=5)).wait()
    assert handle.finish_reasons == ("length",)
    assert len(handle.tokens[0]) == 5
    assert set(text_of(handle)) == {"a"}


def test_a_text_that_no_token_can_continue_fails_alone() -> None:
    one = engine(Letters("a", "c"), 8)
    fails = one.submit(request(Structure(regex="aab|aad")))
    works = one.submit(request(Structure(regex="a{6}")))
    with pytest.raises(RunError, match="no token of the vocabulary can come next"):
        fails.wait()
    assert text_of(fails) == "aa"
    assert text_of(works.wait()) == "a" * 6
    assert one.pages_used == 0


def test_a_mask_that_is_too_much_work_fails_alone() -> None:
    schema = {"type": "object", "properties": {f"p{n}": {"type": "null"} for n in range(600)}}
    works = ENGINE.submit(request(Structure(choices=("alpha",))))
    with pytest.raises(RunError, match="cannot be continued"):
        ENGINE.submit(request(Structure(json_schema=schema))).wait()
    assert text_of(works.wait()) == "alpha"


# ---- what is refused

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "given nothing; it takes one of json_schema, regex, choices, grammar"),
    "two": ({"regex": "a", "choices": ("b",)}, "given regex and choices"),
    "no choice": ({"choices": ()}, "at least one"),
    "an empty choice": ({"choices": ("a", "")}, "a choice is empty"),
    "a number as a choice": ({"choices": (1,)}, "takes text"),
    "a text as choices": ({"choices": "ab"}, "takes a list"),
    "half a character": ({"choices": ("\ud800",)}, "surrogate"),
    "no regex": ({"regex": ""}, "empty"),
    "an open group": ({"regex": "a("}, "unclosed group"),
    "look-ahead": ({"regex": "(?=a)b"}, "look-around"),
    "no JSON": ({"json_schema": "{"}, "not valid JSON"),
    "a list as schema": ({"json_schema": "[1]"}, "takes a JSON object"),
    "NaN in a schema": ({"json_schema": {"minimum": float("nan")}}, "not valid JSON"),
    "an unknown type": ({"json_schema": {"type": "objet"}}, "objet"),
    "an unsupported keyword": ({"json_schema": {"not": {}}}, "not"),
    "a schema without values": ({"json_schema": {"type": "integer", "minimum": 2, "maximum": 1}}, "minimum"),
    "a bad pattern": ({"json_schema": {"type": "string", "pattern": "["}}, "unclosed character class"),
    "a deep schema": ({"json_schema": "[" * 100_000}, "recursion"),
    "a huge schema": ({"json_schema": {"enum": ["x" * LARGEST]}}, "at most"),
    "a bad grammar": ({"grammar": "start: ("}, "line 1, column 9"),
    "an unknown rule": ({"grammar": "start: other"}, "other"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_structure_that_cannot_be_followed_is_refused_in_one_line(case: str) -> None:
    settings, said = WRONG[case]
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        Structure(**settings)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("structure", "said"),
    [
        ({"type": "object"}, "takes a Structure"),
        (Structure(regex="(b|c)a"), "no token of the vocabulary"),
        (Structure(regex="a{0}"), "empty text alone"),
        (Structure(json_schema={"$ref": "#"}), "does not fit this model"),
        (Structure(grammar="start: <|nowhere|>"), "nowhere"),
    ],
)
def test_what_the_model_cannot_write_is_refused_when_it_is_asked_for(structure: Any, said: str) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        engine(Letters("a", "d"), 8).submit(request(structure))


def test_a_schema_as_deep_as_its_length_allows_does_not_exhaust_the_stack() -> None:
    depth = 3500
    chain = {f"{n}": {"$ref": f"#/$defs/{n + 1}"} for n in range(depth)}
    schema = {"$defs": {**chain, f"{depth}": {"const": "alpha"}}, "$ref": "#/$defs/0"}
    assert LARGEST * 0.7 < len(json.dumps(schema)) < LARGEST
    assert text_of(ENGINE.submit(request(Structure(json_schema=schema))).wait()) == '"alpha"'


def test_llguidance_is_loaded_with_the_first_structure_and_not_before() -> None:
    code = (
        "import sys; from nextword.engine import Engine, Request, Structure\n"
        "assert 'llguidance' not in sys.modules\n"
        "Structure(choices=('a',)); assert 'llguidance' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_real_model_writes_valid_json_hot_and_greedily(smollm2_path: Path) -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 20},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["tall", "small"]}, "maxItems": 2},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": False,
    }
    model = nextword.load(str(smollm2_path), device="cpu")
    for temperature in (0, 1.5):
        [completion] = model.complete_all(
            ["A person as JSON:\n"], structure=Structure(json_schema=schema), temperature=temperature, seed=1
        )
        assert completion.finish == "stop"
        Draft202012Validator(schema).validate(json.loads(completion.text))


def test_a_tokenizer_is_handed_over_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Tokenizer, "token_bytes", lambda self, token: asked.append(token) or b"a")
    grammars = Grammars(TOKENIZER, 64)
    for _ in range(3):
        grammars.matcher(Structure(regex="a+"))
    assert len(asked) == 64
