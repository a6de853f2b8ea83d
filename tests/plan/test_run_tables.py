"""Tables of runs and of optima: which columns mean what, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from nextword.base import UsageError
from nextword.plan import Optima, Runs, read_runs, read_table
from nextword.plan.runs import by_kind

SCALING = Path(__file__).parents[1] / "oracles" / "scaling"


@pytest.fixture
def table(tmp_path: Path):
    def write(text: str) -> Path:
        path = tmp_path / "table.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.mark.parametrize(
    ("text", "size", "tokens"),
    [
        ("N,D,loss\n1e9,2e10,2.5\n", 1e9, 2e10),
        ("N,C,loss\n1e9,1.2e20,2.5\n", 1e9, 2e10),
        ("D,C,loss\n2e10,1.2e20,2.5\n", 1e9, 2e10),
    ],
)
def test_any_two_of_size_tokens_and_flops_give_the_third(table, text: str, size: float, tokens: float) -> None:
    runs = read_runs(table(text))
    assert (runs.parameters, runs.tokens, runs.symbol, runs.counts) == ((size,), (tokens,), "N", {})


def test_with_all_three_a_sixth_of_the_flops_a_token_is_fitted_and_every_count_is_kept(table) -> None:
    runs = read_runs(table("params_total,params_matrices,tokens,flops,loss\n1.5e9,9e8,2e10,1.2e20,2.5\n"))
    assert runs.parameters == (1e9,)
    assert runs.counts == {"params_total": (1.5e9,), "params_matrices": (9e8,)}
    assert runs.symbol == "M"
    assert read_runs(table("N,D,C,loss\n1.001e9,2e10,1.2e20,2.5\n")).symbol == "N"  # no more than rounded otherwise


@pytest.mark.parametrize("heading", ["bpb", "val_bpb", "bits_per_byte", "Bits/byte", "bits a byte"])
def test_bits_a_byte_are_told_from_nats_by_the_heading(table, heading: str) -> None:
    heading = heading.replace("/", " per ")
    runs = read_runs(table(f"N,D,{heading}\n1e9,2e10,0.8\n"))
    assert (runs.unit, runs.losses) == ("bits/byte", (0.8,))
    assert runs.take([0]).unit == "bits/byte"
    assert read_runs(table("N,D,loss\n1e9,2e10,2.8\n")).unit == "nats/token"


def test_kinds_are_apart(table) -> None:
    found = by_kind(read_table(table("arch,N,D,loss\nlstm,1e6,1e7,3\ntransformer,2e6,1e7,2.9\nlstm,4e6,1e7,2.8\n")))
    assert list(found) == ["lstm", "transformer"]
    lstm = found["lstm"]
    assert isinstance(lstm, Runs)
    assert lstm.parameters == (1e6, 4e6)


def test_one_of_several_subsets_is_asked_for(table) -> None:
    path = table("experiment,N,D,loss\ntuned,1e6,1e7,3\nplain,many,1e7,x\n")
    with pytest.raises(UsageError, match="2 subsets; choose one with --subset: tuned, plain"):
        read_table(path)
    with pytest.raises(UsageError, match=r"--subset 'tund' is not in .* Did you mean tuned"):
        read_table(path, "tund")
    assert read_runs(path, "tuned").parameters == (1e6,)  # what is wrong in the others does not matter
    assert read_runs(table("count,N,D,loss\n1,1e6,1e7,3\n2,2e6,1e7,2\n")).tokens == (1e7, 1e7)  # a count, not a subset


WRONG = {
    "two columns of one run": ("N,loss\n1e6,3\n", "no column for tokens or flops; it has N, loss"),
    "no size": ("name,D,loss\na,1e6,3\n", "no column for parameters or flops"),
    "a size of zero": ("params,D,loss\n0,1e6,3\n", "line 2: params '0' must be above 0"),
    "a missing loss": ("N,D,val_bpb\n1e6,1e7,.9\n1e6,2e7,\n", "line 3: val_bpb '' is not a number"),
    "a loss of nobody": ("N,D,val_bpb\n1e6,1e7,1e5\n", "line 2: val_bpb 100000 is out of range"),
    "a size that follows": ("D,C,loss\n1e12,1e3,3\n", r"line 2: C / \(6 D\) = 1.66667e-10 is out of range"),
    "FLOPs in PFLOPs": ("N,D,C,loss\n1e9,2e10,1.2e14,3\n", "C is 1e-06 times 6 x N x D; one of them is in other units"),
    "optima without FLOPs": ("n_star,loss_star\n1e6,3\n", "no column for flops"),
    "optima of words": ("C,n_star\n1e18,big\n", "line 2: n_star 'big' is not a number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_missing_or_absurd_is_named_by_line_and_column(table, case: str) -> None:
    text, said = WRONG[case]
    with pytest.raises(UsageError, match=said):
        read_table(table(text))


def test_optima_are_known_by_their_headings_or_by_one_row_a_budget() -> None:
    starred = read_table(SCALING / "porian_optima.csv")
    assert isinstance(starred, Optima)
    assert (len(starred), list(starred.sizes), starred.unit) == (12, ["N", "D"], "nats/token")
    rows = read_table(SCALING / "nanochat_optima.csv", "matmul")
    assert isinstance(rows, Optima)
    assert rows.sizes["N"] == (110678115.0, 167797457.0, 250650865.0, 381758347.0)
    assert rows.unit == "bits/byte"
    with pytest.raises(UsageError, match="holds the optima of 4 budgets; a law is fitted to all runs"):
        read_runs(SCALING / "nanochat_optima.csv", "matmul")


@pytest.mark.parametrize(
    "rows",
    [
        "1e8,1e9,6e17,3\n2e8,2e9,2.4e18,2.9\n4e8,4e9,9.6e18,2.8\n",  # ten tokens a parameter, by rule
        "1e8,1e9,6e17,3\n2e8,1.5e9,1.8e18,3.1\n4e8,2e9,4.8e18,2.8\n",  # a larger budget with a higher loss
        "1e8,1e9,6e17,3\n2e8,5e8,6e17,3.1\n4e8,2e9,4.8e18,2.8\n",  # a budget with two runs
    ],
)
def test_runs_that_are_no_optima_are_not_taken_for_some(table, rows: str) -> None:
    assert isinstance(read_table(table(f"N,D,C,loss\n{rows}")), Runs)


def test_optima_that_were_not_found_are_skipped_and_said(table) -> None:
    path = table("C,N_opt,D_opt\n1e18,nan,nan\n2e18,1e8,3e9\n")
    found = read_table(path)
    assert isinstance(found, Optima)
    assert (found.flops, found.losses) == ((2e18,), ())
    assert found.skipped == (f"{path}, line 2: its optimum is nan",)
