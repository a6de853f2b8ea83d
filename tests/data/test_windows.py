"""Windows: every token is a target once an epoch, in an order that neither resuming nor more processes change."""

from __future__ import annotations

import mmap
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextword.base import UsageError
from nextword.data import dataset
from nextword.data.packing import best_fit
from nextword.data.streams import IGNORED, TokenStream
from nextword.data.windows import Batch, Windows

END = 0
PACKINGS = ("stream", "best-fit")
Corpus = list[list[tuple[int, bool]]]  # documents of pieces: so many tokens, and whether they are on this side
corpora = st.lists(
    st.lists(st.tuples(st.integers(1, 12), st.sampled_from([True, True, False])), min_size=1, max_size=4),
    min_size=1, max_size=12,
).map(lambda corpus: [*corpus, [(20, True)]])  # fmt: skip


def stream_of(lengths: list[int]) -> TokenStream:
    """Documents of so many tokens, with their mark, in which every token is told apart by its number."""
    numbers = iter(range(1, 10_000))
    return TokenStream.of([[next(numbers) for _ in range(length - 1)] for length in lengths], END)


@dataclass
class Read:
    """A token as the brute-force reference below reads it."""

    token: int
    target: int  # or IGNORED
    run: int  # of text without a gap: what may be seen together


def side_of(corpus: Corpus) -> tuple[TokenStream, list[Read]]:
    """A side of `corpus` as a stream, and what must come of each of its tokens, one after the other."""
    numbers, table, tokens, expected = iter(range(1, 10_000)), [], [], []
    run = 0
    for document, pieces in enumerate(corpus):
        whole = [(END, 0)] + [(next(numbers), piece) for piece, (size, _) in enumerate(pieces) for _ in range(size)]
        whole.append((END, len(pieces) - 1))  # that it ends is learnt with its last piece
        before_is_here = False
        for (token, piece), (following, its_piece) in pairwise(whole):
            here, goes_on = pieces[piece][1], pieces[its_piece][1]
            if here:
                run += not before_is_here
                expected.append(Read(token, following if goes_on else IGNORED, run))
                tokens.append(token)
            before_is_here = here
        table += [(size + (number == 0), 0, document, number, number == len(pieces) - 1, True)
                  for number, (size, here) in enumerate(pieces) if here]  # fmt: skip
        run += 1
    tables = np.split(np.array(table, dataset.PIECE), range(3, len(table), 3))  # as those of several shards
    segments = dataset.segments_of(tables)
    array = np.array(tokens, np.uint32)
    return TokenStream([array], [array.size], lambda: segments, "<u4", END, array.size, ""), expected


def epoch_of(windows: Windows, epoch: int) -> list[Batch]:
    return [windows.batch(step, 1) for step in range(epoch * windows.count, (epoch + 1) * windows.count)]


def place_of(inputs: list[int], expected: list[Read]) -> int:
    """Where in the stream, which goes round, a row was cut."""
    around = [read.token for read in expected] * 2
    return next(at for at in range(len(expected)) if around[at : at + len(inputs)] == inputs)


@given(corpora, st.integers(2, 16), st.booleans(), st.integers(0, 3))
def test_rows_of_the_stream_have_the_targets_and_masks_of_the_reference(
    corpus: Corpus, context: int, mask: bool, epoch: int
) -> None:
    stream, expected = side_of(corpus)
    windows = Windows(stream, context, 1, "stream", mask)
    seen = Counter[int]()
    for batch in epoch_of(windows, epoch):
        at = place_of(batch.inputs[0].tolist(), expected)
        reads = [expected[(at + n) % len(expected)] for n in range(context)]
        seen.update((at + n) % len(expected) for n in range(context))
        assert batch.targets[0].tolist() == [read.target for read in reads]
        if mask:
            assert batch.documents is not None
            runs = [read.run for read in reads]
            changes = [b != a or (at + n + 1) % len(expected) == 0 for n, (a, b) in enumerate(pairwise(runs))]
            assert batch.documents[0].tolist() == [0, *accumulate(changes)]
    assert set(seen.values()) == {1}
    assert len(expected) - len(seen) == stream.tokens % context


@given(corpora, st.integers(1, 16), st.booleans(), st.integers(0, 3))
def test_packed_rows_have_the_targets_and_masks_of_the_reference(
    corpus: Corpus, context: int, mask: bool, epoch: int
) -> None:
    stream, expected = side_of(corpus)
    batches = epoch_of(Windows(stream, context, 1, "best-fit", mask), epoch)
    pairs = Counter((read.token, read.target) for read in expected if read.target != IGNORED)
    found = Counter[tuple[int, int]]()
    for batch in batches:
        counted = batch.targets[0] != IGNORED
        found.update(zip(batch.inputs[0][counted].tolist(), batch.targets[0][counted].tolist(), strict=True))
        if mask:
            assert batch.documents is not None
            for number in set(batch.documents[0][counted].tolist()):
                piece = batch.inputs[0][counted & (batch.documents[0] == number)].tolist()
                at = place_of(piece, expected)
                assert len({read.run for read in expected[at : at + len(piece)]}) == 1
    assert found == pairs


@pytest.mark.parametrize("packing", PACKINGS)
@given(corpora, st.integers(1, 16), st.booleans(), st.integers(1, 4))
def test_rows_in_order_have_every_target_of_the_reference_once_whatever_the_context(
    packing: str, corpus: Corpus, context: int, mask: bool, size: int
) -> None:
    stream, expected = side_of(corpus)
    windows = Windows(stream, context, 9, packing, mask)  # type: ignore[arg-type]
    found = Counter[tuple[int, int]]()
    for start in range(0, windows.rows_in_order, size):
        batch, positions = windows.in_order(np.arange(start, min(start + size, windows.rows_in_order)))
        counted = batch.targets != IGNORED
        for at, target in zip(positions[counted].tolist(), batch.targets[counted].tolist(), strict=True):
            found[at, target] += 1
    assert found == Counter((at, read.target) for at, read in enumerate(expected) if read.target != IGNORED)


@given(corpora, st.integers(1, 5), st.integers(2, 9))
def test_stretches_of_a_stream_have_no_target_that_the_stream_has_not(corpus: Corpus, count: int, size: int) -> None:
    stream, expected = side_of(corpus)
    count = min(count, stream.tokens // size)
    part = stream.spread(count, size)
    assert part.tokens == count * size
    starts = [n * (stream.tokens - size) // max(1, count - 1) for n in range(count)]
    places = [at for start in starts for at in range(start, start + size)]
    targets = part.following(np.arange(part.tokens)).tolist()
    documents = stream.segments.documents[stream.segment_of(np.array(places))]
    assert np.array_equal(part.segments.documents[part.segment_of(np.arange(part.tokens))], documents)
    for n, (at, target) in enumerate(zip(places, targets, strict=True)):
        cut = expected[at].target != END and (n + 1 == len(places) or places[n + 1] != at + 1)
        assert target == (IGNORED if cut else expected[at].target)


def test_documents_between_which_nothing_is_held_out_share_one_mark_and_each_is_learnt_to_its_end() -> None:
    windows = Windows(TokenStream.of([[1, 2], [3]], END), 4, 0, "stream", mask_documents=True)
    batch = windows.in_order(np.arange(2))[0]
    assert batch.inputs.tolist() == [[END, 1, 2, END], [1, 2, END, 3]]  # the second goes back to have a whole context
    assert batch.targets.tolist() == [[1, 2, END, 3], [IGNORED, IGNORED, IGNORED, END]]
    assert batch.documents is not None
    assert batch.documents.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1]]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("mask", [True, False])
def test_processes_together_see_what_one_process_sees(packing: str, mask: bool) -> None:
    windows = Windows(stream_of([17, 5, 90, 33, 2, 60] * 4), 8, 7, packing, mask)
    for step in range(40):
        for make in (windows.batch, windows.sequential_batch):
            whole = make(step, 12)
            for world in (2, 3, 4):
                parts = [make(step, 12, rank, world) for rank in range(world)]
                assert np.array_equal(np.concatenate([part.inputs for part in parts]), whole.inputs)
                assert np.array_equal(np.concatenate([part.targets for part in parts]), whole.targets)
                if mask:
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


@pytest.mark.parametrize("mask", [True, False])
def test_rows_of_sequential_batches_go_on_where_they_ended(mask: bool) -> None:
    stream = stream_of([300, 41, 200, 7, 120])
    windows = Windows(stream, 8, 7, mask_documents=mask)
    steps = windows.lane_steps(4)
    assert steps == stream.tokens // 32
    for epoch in range(2):
        batches = [windows.sequential_batch(epoch * steps + step, 4) for step in range(steps)]
        rows = np.concatenate([batch.inputs for batch in batches], axis=1)
        text = np.tile(stream.read(0, stream.tokens), 2)
        begin = next(at for at in range(8) if np.array_equal(text[at : at + rows.size], rows.ravel()))
        if not mask:
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


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=30),
    st.lists(st.integers(1, 9), min_size=1, max_size=40),
    st.data(),
)
def test_a_stream_reads_the_same_however_it_lies_in_parts(
    lengths: list[int], cuts: list[int], data: st.DataObject
) -> None:
    whole = stream_of(lengths)
    tokens = whole.read(0, whole.tokens).astype(np.uint16)
    parts = [part for part in np.split(tokens, np.unique(np.cumsum(cuts).clip(0, whole.tokens))) if part.size]
    sizes = [part.size for part in parts]
    cut = TokenStream(parts, sizes, lambda: whole.segments, "<u2", END, whole.bytes, "")
    start = data.draw(st.integers(0, whole.tokens))
    count = data.draw(st.integers(0, whole.tokens - start))
    assert np.array_equal(cut.read(start, count), tokens[start : start + count])
    places = np.array(data.draw(st.lists(st.integers(0, whole.tokens - 1))), dtype=np.int64)
    assert np.array_equal(cut.take(places), tokens[places])
    with pytest.raises(IndexError):
        cut.read(start, whole.tokens - start + 1)


def test_segments_of_very_many_documents_lie_in_files_without_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(0)
    table = np.zeros(1000, dataset.PIECE)
    table["document"], table["tokens"] = np.sort(draw.integers(0, 300, 1000)), draw.integers(0, 9, 1000)
    table["number"], table["last"], table["learned"] = draw.integers(0, 3, (3, 1000))
    held = dataset.segments_of([table])
    monkeypatch.setattr(dataset, "_HELD", 0)
    mapped = dataset.segments_of(np.split(table, [7, 7, 500]), tmp_path)
    for name in ("starts", "lengths", "ends", "documents", "flips"):
        assert getattr(mapped, name).size
        assert np.array_equal(getattr(mapped, name), getattr(held, name))
    assert isinstance(mapped.starts.base.base, mmap.mmap)
    assert not list(tmp_path.iterdir())
