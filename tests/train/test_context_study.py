"""What the study of context measures, on tasks and models whose answer is known."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from nextword.data import Dataset
from nextword.models import build
from nextword.plan import parameters
from nextword.train import context_tasks
from nextword.train.context_study import Mean, study, token_losses, useful_distance
from nextword.train.context_tasks import IGNORED, copy_batch, recall_batch, smallest_width, solve, task_spec


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


def test_a_transformer_learns_to_copy_over_a_short_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # of steps, as many on a busy machine as on any
    monkeypatch.setattr(context_tasks, "time", clock)
    result = solve("transformer", "copy", 3, 240)
    assert result.steps == 119
    assert result.accuracy > 0.9  # a guess is an eighth
    assert result.loss < 0.3 * result.baseline


def test_token_losses_are_minus_the_log_of_the_models_probability() -> None:
    model = build(task_spec("gru", "recall", 4)).eval()
    windows = torch.randint(0, 10, (20, 9), generator=torch.Generator().manual_seed(0))
    found = token_losses(model, windows)
    with torch.no_grad():
        logprobs = model(windows[:, :-1])[0].log_softmax(-1)
    torch.testing.assert_close(found, -logprobs.gather(2, windows[:, 1:, None])[..., 0])


def test_the_useful_distance_is_where_the_rest_cannot_be_told_from_nothing() -> None:
    def means(*pairs: tuple[float, float]) -> list[Mean]:
        return [Mean(2**place, mean, error, 100) for place, (mean, error) in enumerate(pairs)]

    assert useful_distance(means((0.5, 0.01), (0.2, 0.01), (0.005, 0.001), (0.002, 0.001)), 16) == 4
    assert useful_distance(means((0.5, 0.01), (0.2, 0.01), (0.1, 0.01), (0.05, 0.01)), 16) == 16
    assert useful_distance(means((0.02, 0.02), (0.01, 0.02)), 4) == 1  # not told apart


def test_a_study_measures_every_kind_and_says_what_it_measured(data: Dataset) -> None:
    found = study(data, 6.0, 16, 30e3, ("transformer", "rnn"), {"recall": (2,)}, say=lambda text: None)
    assert [each.kind for each in found.kinds] == ["transformer", "rnn"]
    for each in found.kinds:
        assert [mean.at for mean in each.by_position] == [1, 2, 4, 8, 16]
        assert each.by_visible[-1].at == 16
        assert 0 < each.loss < 2 * math.log(data.vocabulary)
        assert all(rate > 0 for rate in each.tokens_per_second.values())
    transformer, rnn = found.kinds
    assert len(set(rnn.state_bytes.values())) == 1
    assert transformer.state_bytes[8 * 16] == 8 * transformer.state_bytes[16]
    assert transformer.carrying is None
    said = " ".join(found.findings())
    assert "is best here" in said


def test_the_narrowest_width_that_recalls_is_found_or_said_to_be_none(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(perf_counter=itertools.count().__next__)  # of steps
    monkeypatch.setattr(context_tasks, "time", clock)
    found = smallest_width("transformer", 1, 300)  # one pair: the value is the only one shown
    assert found.width == 16
    assert found.best >= 0.95
    assert found.parameters == parameters(task_spec("transformer", "recall", 1, 16)).total
    none = smallest_width("rnn", 8, 2)
    assert (none.width, none.parameters, none.state_bytes) == (None, None, None)
    assert 0 < none.best < 0.95
