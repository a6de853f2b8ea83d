"""Windows: every token is a target once an epoch, in an order that neither resuming nor more processes change."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.base import UsageError
from nextword.data.packing import best_fit
from nextword.data.streams import TokenStream
from nextword.data.windows import IGNORED, Batch, Windows

END = 0
PACKINGS = ("stream", "best-fit")
lengths_of_documents = st.lists(st.integers(1, 40), min_size=1, max_size=30)


def stream_of(lengths: list[int]) -> TokenStream:
    """Documents in which every token is told apart by its number, but for the end tokens."""
    numbers = iter(range(1, 10_000))
    return TokenStream.of([[next(numbers) for _ in range(length - 1)] + [END] for length in lengths], END)


def epoch_of(windows: Windows, epoch: int) -> list[Batch]:
    return [windows.batch(step, 1) for step in range(epoch * windows.count, (epoch + 1) * windows.count)]


def counted_pairs(batches: list[Batch]) -> Counter[tuple[int, int]]:
    pairs = [(b.inputs[b.targets != IGNORED], b.targets[b.targets != IGNORED]) for b in batches]
    return Counter((int(a), int(b)) for one, two in pairs for a, b in zip(one, two, strict=True))


@given(lengths_of_documents, st.integers(1, 16), st.integers(0, 5))
def test_an_epoch_of_stream_windows_leaves_out_less_than_one_window(
    lengths: list[int], context: int, epoch: int
) -> None:
    stream = stream_of([*lengths, 20])
    batches = epoch_of(Windows(stream, context, seed=1), epoch)
    tokens = stream.read(0, stream.tokens)
    every = Counter(zip(tokens.tolist(), np.roll(tokens, -1).tolist(), strict=True))
    seen = counted_pairs(batches)
    assert seen <= every
    assert every.total() - seen.total() == stream.tokens % context


@given(lengths_of_documents, st.integers(1, 16), st.booleans(), st.integers(0, 3))
def test_an_epoch_of_packed_rows_has_every_token_but_the_first_of_its_document_once(
    lengths: list[int], context: int, across: bool, epoch: int
) -> None:
    stream = stream_of([*lengths, 20])
    batches = epoch_of(Windows(stream, context, 1, "best-fit", across), epoch)
    tokens, first = stream.read(0, stream.tokens), set(stream.document_starts.tolist())
    expected = Counter(
        (int(tokens[at - 1]), int(tokens[at])) for at in range(1, stream.tokens) if at not in first
    )  # fmt: skip
    assert counted_pairs(batches) == expected


@given(lengths_of_documents, st.integers(1, 16), st.sampled_from(PACKINGS), st.integers(0, 40))
def test_documents_numbers_change_exactly_where_documents_do(
    lengths: list[int], context: int, packing: str, step: int
) -> None:
    """Told apart by the tokens themselves: numbers of one document follow each other without an end between."""
    stream = stream_of([*lengths, 20])
    batch = Windows(stream, context, 3, packing, across_documents=False).batch(step, 1)
    assert batch.documents is not None
    row, numbers, targets = batch.inputs[0], batch.documents[0], batch.targets[0]
    owner = np.searchsorted(stream.document_starts, np.arange(stream.tokens), side="right")
    home = dict(zip(stream.read(0, stream.tokens).tolist(), owner.tolist(), strict=True))
    assert numbers[0] == 0
    assert set(np.diff(numbers)) <= {0, 1}
    for a, b, same in zip(row[:-1], row[1:], np.diff(numbers) == 0, strict=True):
        if END not in (a, b) and home[int(a)] == home[int(b)] and b == a + 1:
            assert same
        if END not in (a, b) and home[int(a)] != home[int(b)]:
            assert not same
        if packing == "stream":
            assert same == (a != END)
    if packing == "stream":
        assert np.array_equal(targets == IGNORED, row == END)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("across", [True, False])
def test_processes_together_see_what_one_process_sees(packing: str, across: bool) -> None:
    windows = Windows(stream_of([17, 5, 90, 33, 2, 60] * 4), 8, 7, packing, across)
    for step in range(40):
        for make in (windows.batch, windows.sequential_batch):
            whole = make(step, 12)
            for world in (2, 3, 4):
                parts = [make(step, 12, rank, world) for rank in range(world)]
                assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
                assert np.array_equal(np.concatenate([part.targets for part in parts]), whole.targets)
                if not across:
                    joined = np.concatenate([part.documents for part in parts])  # type: ignore[misc]
                    assert np.array_equal(joined, whole.documents)


@pytest.mark.parametrize("packing", PACKINGS)
def test_samples_do_not_depend_on_how_many_make_a_batch(packing: str) -> None:
    windows = Windows(stream_of([17, 5, 90, 33] * 5), 8, 7, packing)
    singly = np.concatenate([windows.batch(step, 1).inputs for step in range(60)])
    together = np.concatenate([windows.batch(step, 6).inputs for step in range(10)])
    assert np.array_equal(singly, together)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_batch_depends_on_seed_and_step_alone(packing: str) -> None:
    stream = stream_of([17, 5, 90, 33] * 5)
    windows = Windows(stream, 8, 7, packing)
    late = windows.batch(1000, 4).inputs
    windows.batch(3, 4)
    assert np.array_equal(windows.batch(1000, 4).inputs, late)
    assert np.array_equal(Windows(stream, 8, 7, packing).batch(1000, 4).inputs, late)
    assert not np.array_equal(Windows(stream, 8, 8, packing).batch(1000, 4).inputs, late)


def test_epochs_differ_in_order_and_in_where_windows_begin() -> None:
    stream = stream_of([2000])
    windows = Windows(stream, 16, 7)
    begins = [[int(batch.inputs[0, 0]) for batch in epoch_of(windows, epoch)] for epoch in range(6)]
    assert len({min(each) % 16 for each in begins}) > 1
    assert all(each != sorted(each) for each in begins)


@pytest.mark.parametrize("across", [True, False])
def test_rows_of_sequential_batches_go_on_where_they_ended(across: bool) -> None:
    stream = stream_of([300, 41, 200, 7, 120])
    windows = Windows(stream, 8, 7, across_documents=across)
    steps = windows.lane_steps(4)
    assert steps == stream.tokens // 32
    for epoch in range(2):
        batches = [windows.sequential_batch(epoch * steps + step, 4) for step in range(steps)]
        rows = np.concatenate([batch.inputs for batch in batches], axis=1)
        text = np.tile(stream.read(0, stream.tokens), 2)
        begin = next(at for at in range(8) if np.array_equal(text[at : at + rows.size], rows.ravel()))
        if across:
            targets = np.concatenate([batch.targets for batch in batches], axis=1)
            assert np.array_equal(targets.ravel(), text[begin + 1 : begin + 1 + rows.size])


def test_the_case_of_best_fit_packing_in_the_reference() -> None:
    lengths = [5, 3, 9, 4, 2, 7]
    rows = [[lengths[index] for index in row] for row in best_fit(lengths, 9)]
    assert rows == [[9], [7, 2], [5, 4], [3]]


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 70))
def test_best_fit_places_everything_once_and_wastes_no_room_it_could_use(lengths: list[int], capacity: int) -> None:
    rows = best_fit(lengths, capacity)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    filled = [sum(lengths[index] for index in row) for row in rows]
    assert all(fill <= capacity for fill in filled)
    # Decreasing order and best fit by a plain search through all rows:
    plain: list[int] = []
    for length in sorted(lengths, reverse=True):
        open_rows = [at for at, fill in enumerate(plain) if fill + length <= capacity]
        if open_rows:
            plain[max(open_rows, key=lambda at: plain[at])] += length
        else:
            plain.append(length)
    assert sorted(filled) == sorted(plain)


def test_a_text_shorter_than_a_window_says_how_much_there_is_and_how_much_is_needed() -> None:
    with pytest.raises(UsageError, match=r"10 tokens; one window of context 10 needs at least 11"):
        Windows(stream_of([10]), 10, 0)
    assert Windows(stream_of([11]), 10, 0).count == 1


def test_a_text_shorter_than_a_batch_says_how_much_there_is_and_how_much_is_needed() -> None:
    windows = Windows(stream_of([100]), 8, 0)
    windows.batch(0, 12)
    for make in (windows.batch, windows.sequential_batch):
        with pytest.raises(UsageError, match=r"100 tokens.*13 rows needs at least 104"):
            make(0, 13)


def test_a_batch_that_does_not_divide_among_processes_is_refused() -> None:
    with pytest.raises(UsageError, match="6 rows does not divide among 4"):
        Windows(stream_of([100]), 8, 0).batch(0, 6, 0, 4)


@given(lengths_of_documents, st.lists(st.integers(1, 9), min_size=1, max_size=40), st.data())
def test_a_stream_reads_the_same_however_it_lies_in_parts(
    lengths: list[int], cuts: list[int], data: st.DataObject
) -> None:
    whole = stream_of(lengths)
    tokens = whole.read(0, whole.tokens).astype(np.uint16)
    parts = [part for part in np.split(tokens, np.unique(np.cumsum(cuts).clip(0, whole.tokens))) if part.size]
    sizes = [part.size for part in parts]
    cut = TokenStream(parts, sizes, lambda: whole.document_starts, "<u2", END, whole.bytes, whole.documents, "")
    start = data.draw(st.integers(0, whole.tokens))
    count = data.draw(st.integers(0, whole.tokens - start))
    assert np.array_equal(cut.read(start, count), tokens[start : start + count])
    places = np.array(data.draw(st.lists(st.integers(0, whole.tokens - 1))), dtype=np.int64)
    assert np.array_equal(cut.take(places), tokens[places])
    with pytest.raises(IndexError):
        cut.read(start, whole.tokens - start + 1)
