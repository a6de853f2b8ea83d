"""What the study of context measures, on tasks and models whose answer is known, and what it dares to say."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import vega_lite
from nextword.base import UsageError
from nextword.data import Dataset
from nextword.models import build
from nextword.plan import parameters
from nextword.plots import MIME
from nextword.plots.spec import SCHEMA
from nextword.train import context_study, context_tasks
from nextword.train.context_findings import sentences
from nextword.train.context_results import Mean, Plan, Study, TaskResult
from nextword.train.context_study import (
    behind_the_best,
    losses_seeing,
    study,
    task_plan,
    text_plan,
    token_losses,
    useful_distance,
    visible_sizes,
)
from nextword.train.context_tasks import (
    IGNORED,
    RATES,
    copy_batch,
    most_often,
    recall_batch,
    smallest_width,
    solve,
    task_spec,
)
from nextword.train.estimates import Estimate, crossed
from nextword.train.plots import study_figure

PLAN = Plan(
    text_steps=6, task_steps=4, sizes={"copy": (1,), "recall": (2,)}, test_tokens=400, speed_seconds=0.05,
    rates=RATES[:2],
)  # fmt: skip


def test_the_copy_task_asks_for_its_symbols_after_the_delay() -> None:
    inputs, targets = copy_batch(7, torch.Generator().manual_seed(0), 5)
    assert inputs.shape == (5, 7 + 20)
    assert (targets[:, :-10] == IGNORED).all()
    torch.testing.assert_close(targets[:, -10:], inputs[:, :10])
    assert (inputs[:, 10:16] == 8).all()
    assert (inputs[:, 16] == 9).all()
    # Arjovsky et al.'s baseline over all steps at a delay of 100, from ln 8 an answer
    assert 10 * math.log(8) / 120 == pytest.approx(0.17329, abs=1e-5)


def test_every_recall_answer_is_the_value_shown_behind_its_key() -> None:
    inputs, targets = recall_batch(6, torch.Generator().manual_seed(0), 9)
    for row, wanted in zip(inputs.tolist(), targets.tolist(), strict=True):
        shown = dict(zip(row[:12:2], row[1:12:2], strict=True))
        assert [shown[key] for key in row[12:]] == wanted[12:]
        assert sorted(row[12:]) == sorted(shown)
        assert all(each == IGNORED for each in wanted[:12])


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_kinds_are_compared_at_equal_parameters(kind: str) -> None:
    transformer = parameters(task_spec("transformer", "recall", 8)).total
    assert parameters(task_spec(kind, "recall", 8)).total == pytest.approx(transformer, rel=0.1)  # type: ignore[arg-type]


def test_a_transformer_learns_to_copy_over_a_short_delay() -> None:
    result = solve("transformer", "copy", 3, 110, seeds=(0,), rates=(3e-3,))
    assert result.accuracy.low > 0.8  # a guess is an eighth
    assert result.loss.mean < 0.3 * result.baseline
    assert result.learned


def test_every_kind_and_rate_sees_the_same_examples_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[int, list[list[int]]] = {}
    make = context_tasks.copy_batch

    def watched(size: int, generator: torch.Generator, rows: int = 32) -> Any:
        made = make(size, generator, rows)
        seen.setdefault(generator.initial_seed(), []).append(made[0].sum(1).tolist())
        return made

    monkeypatch.setitem(context_tasks.TASKS, "copy", (watched, *context_tasks.TASKS["copy"][1:]))
    results = [solve(kind, "copy", 2, 3, seeds=(5, 6)) for kind in ("transformer", "rnn")]  # type: ignore[arg-type]
    assert [result.steps for result in results] == [3, 3]
    assert set(seen) == {5, 6, context_tasks._VALIDATION, context_tasks._TEST}  # chosen on some, tested on others
    for seed in (5, 6):
        runs = [seen[seed][n : n + 3] for n in range(0, len(seen[seed]), 3)]
        assert len(runs) == 2 * len(RATES)
        assert all(run == runs[0] for run in runs)


def test_the_rate_is_chosen_without_the_test_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(model: float, task: str, size: int, seed: int) -> Any:
        """The middle rate is best in validation, the highest in the test."""
        loss = abs(model - RATES[1]) if seed == context_tasks._VALIDATION else -model
        return np.full((1, 4), 0.5), np.full((1, 4), loss)

    monkeypatch.setattr(context_tasks, "_train", lambda spec, task, size, rate, steps, seed: rate)
    monkeypatch.setattr(context_tasks, "_answers", answers)
    assert solve("rnn", "copy", 2, 1).rate == RATES[1]


def test_naming_the_commonest_symbol_is_right_as_often_as_in_a_simulation() -> None:
    assert most_often(1) == 1.0
    assert most_often(2) == pytest.approx(9 / 16)
    drawn = np.random.default_rng(0).integers(0, 8, (20_000, 10))
    share = np.mean([np.bincount(row).max() for row in drawn]) / 10
    assert most_often(10) == pytest.approx(share, abs=0.003)


def result_of(by_seed: tuple[float, ...], size: int = 10) -> TaskResult:
    """Accuracies of seeds whose 256 answers differ at random."""
    draw = np.random.default_rng(0)
    rights = [(draw.random(256) < each).astype(float) for each in by_seed]
    means = tuple(float(each.mean()) for each in rights)
    return TaskResult("copy", size, crossed(rights), means, crossed([[0.0] * 3]), math.log(8), 0.3, 1e-3, 100)


def test_able_is_said_only_where_all_seeds_and_the_interval_agree() -> None:
    assert result_of((1.0, 1.0, 1.0)).able is True
    assert result_of((0.3, 0.35, 0.4)).able is False
    assert result_of((1.0, 1.0, 0.6)).able is None  # the mean of other three seeds may be above or below
    assert result_of((0.96, 0.95, 0.96)).able is None


def test_token_losses_are_minus_the_log_of_the_models_probability() -> None:
    model = build(task_spec("gru", "recall", 4)).eval()
    windows = torch.randint(0, 10, (20, 9), generator=torch.Generator().manual_seed(0))
    found = token_losses(model, windows)
    with torch.no_grad():
        logprobs = model(windows[:, :-1]).log_softmax(-1)
    torch.testing.assert_close(found, -logprobs.gather(2, windows[:, 1:, None])[..., 0])


def test_a_token_sees_as_many_as_are_asked_for_and_every_one_is_scored_once() -> None:
    class Counting:
        """A model whose loss is 1 for the token that is its own window's length ... and its place."""

        def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
            return tokens

        def logits(self, tokens: torch.Tensor) -> torch.Tensor:
            seen = torch.arange(1, tokens.shape[1] + 1).expand_as(tokens).double()
            return torch.stack((torch.zeros_like(seen), -seen * 100), -1)  # of target 1 the loss is 100 x tokens seen

    tokens = torch.ones(3 * 8 + 5, dtype=torch.long)
    for size in (1, 2, 4, 8):
        seen = losses_seeing(Counting(), tokens, size, 8) / 100
        assert seen.tolist() == [*range(size, 2 * size)] * (16 // size)
    assert visible_sizes(16) == [1, 2, 4, 8]
    assert visible_sizes(24) == [1, 2, 4, 8]


def estimates(*pairs: tuple[float, float]) -> list[Mean]:
    return [Mean(2**n, Estimate(mean, error, 30, 2.04 * error)) for n, (mean, error) in enumerate(pairs)]


def test_tokens_are_of_use_as_far_as_is_shown_without_a_gap() -> None:
    assert useful_distance(estimates((0.5, 0.01), (0.2, 0.01), (0.005, 0.004), (0.002, 0.001))) == 2
    assert useful_distance(estimates((0.5, 0.01), (0.2, 0.01), (0.1, 0.01), (0.05, 0.01))) == 8
    assert useful_distance(estimates((0.02, 0.02), (0.3, 0.02))) == 0  # not told apart


def test_a_use_that_is_not_there_is_claimed_in_one_study_of_forty() -> None:
    draw, claimed = np.random.default_rng(0), 0
    for _ in range(600):
        beyond = []
        for at, gain in ((1, 0.5), (2, 0.2), (4, 0.0), (8, 0.0)):
            values = gain + 0.05 * draw.standard_normal((3, 1)) + 0.1 * draw.standard_normal((3, 24))
            beyond.append(Mean(at, crossed(values)))
        claimed += useful_distance(beyond) > 2
    assert claimed / 600 < 0.04


def test_the_best_kind_is_named_only_where_seeds_do_not_turn_it() -> None:
    draw, turned = np.random.default_rng(0), 0
    for _ in range(400):  # three kinds that are equally good
        text = draw.standard_normal((1, 20))
        losses = {
            kind: text + 0.1 * draw.standard_normal((3, 1)) + 0.1 * draw.standard_normal((3, 20)) for kind in "abc"
        }
        turned += all(behind.low > 0 for behind in behind_the_best(losses).values())  # type: ignore[arg-type]
    assert turned / 400 < 0.05
    apart = {"a": text, "b": text + 1.0 + 0.01 * draw.standard_normal((3, 20))}
    assert behind_the_best(apart)["b"].low > 0  # type: ignore[arg-type]


def test_the_plan_fits_the_time_and_leaves_out_the_largest_sizes_first() -> None:
    steps, tokens = text_plan(100.0, a_step=0.1, batch_tokens=2048, context=256, val_tokens=10_000)
    trained = steps * 0.1 * len(RATES) * 3
    measured = tokens * 3 * (2 + 2 * 8) * 0.1 / 2048 / 3
    assert 95 < trained + measured <= 100
    assert tokens == 10_000  # all of it
    assert text_plan(100.0, 0.1, 2048, 256, 10**9)[1] < 10**9
    sizes, costs = {"copy": (1, 2, 3), "recall": (4, 5, 6)}, {"copy": [0.1, 0.2, 0.4], "recall": [0.1, 0.2, 0.4]}
    assert task_plan(1.4 * 9 * 400.5, sizes, costs) == (sizes, 400)
    assert task_plan(0.6 * 9 * 400.5, sizes, costs) == ({"copy": (1, 2), "recall": (4, 5)}, 400)
    assert task_plan(0.2 * 9 * 5.5, sizes, costs) == ({"copy": (1,), "recall": (4,)}, 5)


def test_too_little_time_is_said_at_once(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context_study, "_best", None)  # whoever trains fails otherwise
    with pytest.raises(
        UsageError,
        match="is too little time: 1 kinds x 3 rates x 3 seeds get 0 steps each, and need at least 10",
    ):
        study(data, 0.001, 16, 30e3, ("rnn",), log=lambda text: None)


def test_a_study_leaves_torchs_threads_as_they_were(data: Dataset) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)  # more than a study chooses here
    try:
        with pytest.raises(UsageError, match="is too little time"):
            study(data, 0.001, 16, 30e3, ("rnn",), log=lambda text: None)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def found(data: Dataset) -> Iterator[Study]:
    """A study of two kinds that are hardly trained."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(context_study, "_ROUNDS", 2)
        yield study(data, 6.0, 16, 30e3, ("transformer", "rnn"), log=lambda text: None, plan=PLAN)


def test_a_study_measures_every_kind_with_errors(found: Study, data: Dataset) -> None:
    assert [each.kind for each in found.kinds] == ["transformer", "rnn"]
    assert found.tokens == 6 * 8 * 16
    for each in found.kinds:
        assert [mean.at for mean in each.by_position] == [1, 2, 4, 8, 16]
        assert [mean.at for mean in each.by_visible] == [1, 2, 4, 8]
        assert [mean.at for mean in each.gain_beyond] == [1, 2, 4]
        assert 0 < each.loss.mean < 2 * math.log(data.vocabulary)
        assert each.loss.mean == pytest.approx(sum(each.by_seed) / 3)
        assert len(set(each.by_seed)) == 3
        assert each.rate in RATES
        assert each.loss.margin > 0
        assert all(rate.mean > 0 for rate in each.tokens_per_second.values())
    transformer, rnn = found.kinds
    assert len(set(rnn.state_bytes.values())) == 1
    assert transformer.state_bytes[8 * 16] == 8 * transformer.state_bytes[16]
    assert transformer.carrying is None
    assert rnn.carrying is not None
    assert set(found.behind) == {min(found.kinds, key=lambda each: -each.loss.mean).kind}


def test_a_study_shows_itself_in_a_notebook_also_without_tasks_and_speed(found: Study) -> None:
    kinds = tuple(replace(each, tasks=(), tokens_per_second={}, two_threads=None) for each in found.kinds)
    for own, panels in ((found, 4), (replace(found, kinds=kinds), 2)):
        bundle = own._repr_mimebundle_()
        assert bundle["text/plain"] == sentences(own)[0]
        rows = bundle[MIME]["vconcat"]
        assert sum(len(row["hconcat"]) for row in rows) == panels
        vega_lite.drawn(bundle[MIME] | {"$schema": SCHEMA})
    assert "threads" not in " ".join(sentences(own))


def test_hardly_trained_models_get_no_findings(found: Study) -> None:
    young = tuple(replace(each, over_frequencies=crossed([[0.1, 0.3], [0.2, 0.1]])) for each in found.kinds)
    said = sentences(replace(found, kinds=young))
    assert "too little training: no kind is significantly better than token frequencies" in said[0]
    assert "transformer: too little training to measure what it remembers" in said
    assert any(line.startswith("copy: too little training: after 4 steps no kind") for line in said)
    assert not any("best here" in line or "are useful" in line or "95% correct" in line for line in said)


def test_findings_name_what_would_not_be_seen(found: Study) -> None:
    gains = tuple(estimates((0.5, 0.01), (0.2, 0.01), (0.003, 0.004)))
    tasks = (result_of((1.0, 1.0, 1.0)), result_of((1.0, 1.0, 0.5), 30), result_of((0.2, 0.2, 0.3), 60))
    trained = {"over_frequencies": crossed([[-1.0, -1.1], [-1.0, -1.2]]), "gain_beyond": gains, "useful": 2}
    kinds = (
        replace(found.kinds[0], **trained, tasks=tasks),
        replace(found.kinds[1], **trained, tasks=tuple(result_of((0.28, 0.3, 0.29), each.size) for each in tasks)),
    )
    said = sentences(replace(found, kinds=kinds, behind={"rnn": Estimate(0.1, 0.2, 5, 0.5)}))
    least = gains[2].estimate.detectable()
    assert least == pytest.approx((2.042 + 0.854) * 0.004, rel=0.01)
    assert (
        "transformer: at least the last 3 of 16 tokens are useful (those beyond the last 2: 0.200 ± 0.020 nats); a gain"
        f" under {least:.2g} nats from tokens beyond the last 4 would not be detected"
    ) in said
    assert "is not clearly better than rnn" in said[0]
    assert (
        "copy, 95% correct after 100 steps: transformer up to a delay of 10, unclear at 30, not yet at 60;"
        " rnn too little training"
    ) in said


def test_a_study_is_drawn_with_its_own_numbers(found: Study) -> None:
    figure = study_figure(found)
    vega_lite.drawn(figure)
    assert vega_lite.texts(figure, "kinds") == [kind.kind for kind in found.kinds]
    position, visible, _, _ = [view for view in vega_lite.views(figure) if "layer" in view]
    for panel, means in (
        (position, [kind.by_position for kind in found.kinds]),
        (visible, [kind.by_visible for kind in found.kinds]),
    ):
        estimates = [mean.estimate for of_kind in means for mean in of_kind]
        for name in ("mean", "low", "high"):
            assert vega_lite.column(panel, name) == [getattr(own, name) for own in estimates]
    tasks, speed = (view for view in vega_lite.marks(figure, "bar"))
    done = [task for kind in found.kinds for task in kind.tasks]
    assert vega_lite.column(tasks, "at") == [f"{task.task} {task.size}" for task in done]
    assert vega_lite.column(tasks, "mean") == [task.accuracy.mean for task in done]
    (guesses,) = vega_lite.marks(figure, "tick")
    drawn = dict(zip(vega_lite.column(guesses, "at"), vega_lite.column(guesses, "mean"), strict=True))
    assert drawn == {f"{task.task} {task.size}": task.guess for task in done}
    speeds = [own.mean for kind in found.kinds for own in kind.tokens_per_second.values()]
    assert vega_lite.column(speed, "mean") == speeds


def test_the_narrowest_width_that_recalls_is_found_or_said_to_be_none() -> None:
    found = smallest_width("transformer", 1, 80, rates=(3e-3,))  # one pair: the value is the only one shown
    assert found.width == 16
    assert found.best.low >= 0.95
    assert found.parameters == parameters(task_spec("transformer", "recall", 1, 16)).total
    none = smallest_width("rnn", 8, 1, rates=(3e-3,))
    assert (none.width, none.parameters, none.state_bytes) == (None, None, None)
    assert 0 < none.best.mean < 0.95
