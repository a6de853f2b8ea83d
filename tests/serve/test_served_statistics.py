"""What is drawn follows the distribution that the server states, and depends on nothing but the request."""

from __future__ import annotations

import math
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from nextword.base.distributions import chi_squared_tail
from serving import Server


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_fit_the_exact_softmax(tiny: Server, temperature: float) -> None:
    answer = tiny.complete("To be", temperature=0, max_tokens=1, logprobs=20)
    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    whole = tiny.post("/v1/next", {"prompt": "To be", "top": 257}).json
    logits = {item["token"]: item["logit"] for item in whole["top"]}
    for token, logprob in top.items():
        assert logits[token] - whole["log_sum"] == pytest.approx(logprob, abs=1e-5)
    counts: Counter[str] = Counter()
    for _ in range(4):
        drawn = tiny.complete(["To be"] * 64, n=8, max_tokens=1, temperature=temperature, logprobs=0)
        counts.update(next(iter(choice["logprobs"]["top_logprobs"][0])) for choice in drawn["choices"])
    weights = {token: math.exp(logit / temperature) for token, logit in logits.items()}
    total, draws = sum(weights.values()), sum(counts.values())
    expected = {token: draws * weight / total for token, weight in weights.items()}
    frequent = [token for token in expected if expected[token] >= 5]
    rest = (draws - sum(counts[token] for token in frequent), draws - sum(expected[token] for token in frequent))
    statistic = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in frequent)
    statistic += (rest[0] - rest[1]) ** 2 / rest[1]
    assert chi_squared_tail(statistic, len(frequent)) > 1e-6


def test_the_extension_states_what_was_drawn_from(tiny: Server) -> None:
    logits = {item["id"]: item["logit"] for item in tiny.post("/v1/next", {"prompt": "To be", "top": 257}).json["top"]}
    temperature, top_k = 0.7, 5
    [choice] = tiny.complete("To be", temperature=temperature, top_k=top_k, max_tokens=1, nextword=True)["choices"]
    [token], extension = choice["nextword"]["tokens"], choice["nextword"]
    kept = sorted(logits, key=lambda id: -logits[id])[:top_k]
    own = {id: math.exp(logit) for id, logit in logits.items()}
    drawn = {id: math.exp(logits[id] / temperature) for id in kept}
    assert math.exp(token["logprob"]) == pytest.approx(own[token["id"]] / sum(own.values()))
    assert math.exp(token["sampled_logprob"]) == pytest.approx(drawn[token["id"]] / sum(drawn.values()))
    assert token["kept_mass"] == pytest.approx(sum(own[id] for id in kept) / sum(own.values()))
    assert extension["order"][:2] == ["temperature", "top_k"]
    again = tiny.complete("To be", temperature=temperature, top_k=top_k, max_tokens=1, seed=extension["seed"])
    assert again["choices"][0]["text"] == choice["text"]


def test_a_request_gives_the_same_bytes_alone_and_among_fifteen(smollm2: Server) -> None:
    asked = [
        {"prompt": f"{'Once upon a time, ' * (number % 3)}there were {number}", "seed": number, "max_tokens": 10,
         "logprobs": 2, "temperature": (0, 0.7, 1.3)[number % 3], "n": 1 + number % 2}
        for number in range(16)
    ]  # fmt: skip
    alone = [smollm2.complete(**fields)["choices"] for fields in asked[:4]]
    with ThreadPoolExecutor(16) as pool:
        among = list(pool.map(lambda fields: smollm2.complete(**fields)["choices"], asked))
        again = list(pool.map(lambda fields: smollm2.complete(**fields)["choices"], reversed(asked)))
    assert among[:4] == alone
    assert again[::-1] == among


def test_seeds_tell_choices_apart(smollm2: Server) -> None:
    fields = {"prompt": "Once upon a time", "max_tokens": 8}
    texts = [choice["text"] for choice in smollm2.complete(**fields, n=4, seed=1)["choices"]]
    assert len(set(texts)) == 4
    assert smollm2.complete(**fields, seed=2)["choices"][0]["text"] != texts[0]
    assert smollm2.complete(**fields)["choices"] != smollm2.complete(**fields)["choices"]
    greedy = {smollm2.complete(**fields, temperature=0, seed=seed)["choices"][0]["text"] for seed in range(3)}
    assert len(greedy) == 1


def test_bias_bans_and_forces(smollm2: Server) -> None:
    [paris] = smollm2.post("/tokenize", {"content": " Paris"}).json["tokens"]
    fields = {"prompt": "The capital of France is", "max_tokens": 1, "temperature": 0}
    assert smollm2.complete(**fields)["choices"][0]["text"] == " Paris"
    assert smollm2.complete(**fields, logit_bias={str(paris): -100})["choices"][0]["text"] != " Paris"
    assert smollm2.complete(**fields, logit_bias={"300": 100})["choices"][0]["text"] != " Paris"
    native = smollm2.post("/completion", {"prompt": "The capital of France is", "n_predict": 1, "temperature": 0,
                                          "logit_bias": [[" Paris", False]]})  # fmt: skip
    assert native.json["content"] != " Paris"
