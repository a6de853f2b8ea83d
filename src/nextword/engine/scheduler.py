"""Chooses what runs in the next step: decoding sequences first, then prompt chunks, first come first served."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from .pages import ROOT, PagePool
from .sequence import Sequence


@dataclass(frozen=True)
class Chunk:
    """Tokens of one sequence in one step, starting at position `start`; the last `drafted` are drafts."""

    sequence: Sequence
    start: int
    tokens: list[int]
    drafted: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class Scheduler:
    """Continuous batching over one page pool.

    A step has at most `step_tokens` tokens and `max_sequences` sequences. When pages run out, the most recent sequence
    is preempted and recomputed later. A paused sequence is passed over, and preempted for any that is not.
    """

    def __init__(
        self, pool: PagePool, copy_page: Callable[[int, int], None], step_tokens: int, max_sequences: int
    ) -> None:
        self.pool, self._copy_page = pool, copy_page
        self.step_tokens, self.max_sequences = step_tokens, min(max_sequences, step_tokens)
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # in order of arrival

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def add_first(self, sequences: list[Sequence]) -> None:
        """Put `sequences` at the head of the queue."""
        self.waiting.extendleft(reversed(sequences))

    def schedule(self) -> list[Chunk]:
        """The chunks of the next step; empty if there is nothing to do."""
        sequences = len(self.running)
        chunks = self._decode()
        budget = self.step_tokens - sum(len(chunk.tokens) for chunk in chunks)
        for sequence in self.running:
            if budget and not sequence.decoding and not sequence.handle.paused:
                chunks.append(self._prefill(sequence, budget))
                budget -= len(chunks[-1].tokens)
        preempted = len(self.running) < sequences
        while budget and not preempted and self._admit():
            chunks.append(self._prefill(self.running[-1], budget))
            budget -= len(chunks[-1].tokens)
        return chunks

    def remove(self, sequence: Sequence, keep: bool = True) -> None:
        """Remove a sequence, running or waiting. With `keep`, its pages stay in the prefix cache."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence, keep)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)

    def preempt(self, sequence: Sequence, keep: bool = True) -> None:
        """Free the sequence's pages and requeue it first."""
        self.remove(sequence, keep)
        self.waiting.appendleft(sequence)

    def advance(self, chunk: Chunk, count: int) -> None:
        """Record that the first `count` tokens of a chunk have been computed and accepted."""
        sequence, size, position = chunk.sequence, self.pool.size, chunk.start
        while position < chunk.start + count:
            index, start = divmod(position, size)
            end = min(chunk.start + count, (index + 1) * size)
            parent = sequence.pages[index - 1].digest if index else ROOT
            assert parent is not None
            tokens = chunk.tokens[position - chunk.start : end - chunk.start]
            self.pool.computed(sequence.pages[index], parent, tokens, start)
            position = end
        sequence.computed = position
        if sequence.snapshots and sequence.snapshots[0][0] == position:
            _, snapshot = sequence.snapshots.pop(0)
            self._copy_page(sequence.pages[position // size].number, snapshot.number)
            snapshot.computed = len(snapshot.tokens)
            self.pool.release(snapshot)

    def _decode(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        decoding = [sequence for sequence in self.running if sequence.decoding and not sequence.handle.paused]
        spare = self.step_tokens - len(decoding)  # tokens left for drafts
        for sequence in decoding:
            if sequence not in self.running:  # preempted meanwhile by an earlier one
                continue
            drafts = sequence.draft(spare) if self.pool.rewindable else []
            chunk = Chunk(sequence, sequence.computed, [sequence.tokens[-1], *drafts], len(drafts))
            if self._grow(sequence, chunk.end):
                chunks.append(chunk)
                spare -= len(drafts)
        return chunks

    def _grow(self, sequence: Sequence, end: int) -> bool:
        """Allocate pages up to position `end`; False if the sequence itself was preempted."""
        while len(sequence.pages) < self._pages_for(end):
            if self.pool.available:
                sequence.pages.append(self.pool.take())
                continue
            if self._evict():
                continue
            last = self.running[-1]
            self.preempt(last)
            if last is sequence:
                return False
        return True

    def _evict(self) -> bool:
        """Preempt a paused sequence; False if there is none. Paused ones are in no chunk of this step."""
        paused = [sequence for sequence in self.running if sequence.handle.paused]
        if paused:
            self.preempt(paused[-1])
        return bool(paused)

    def _prefill(self, sequence: Sequence, budget: int) -> Chunk:
        end = min(len(sequence.tokens), sequence.computed + budget)
        if sequence.snapshots:
            end = min(end, sequence.snapshots[0][0])
        return Chunk(sequence, sequence.computed, sequence.tokens[sequence.computed : end])

    def _admit(self) -> bool:
        """Start the next waiting sequence from its prefix in the cache, if there is room.

        It waits while another sequence computes a part of its prompt, so that nothing is computed twice.
        """
        sequence, pool = next((each for each in self.waiting if not each.handle.paused), None), self.pool
        if sequence is None:
            return False
        if len(self.running) >= self.max_sequences:
            return self._evict() and self._admit()
        match = pool.match(sequence.tokens, sequence.first_row)
        if not match.computed:
            return False
        matched = [pool.hold(page) for page in match.pages]
        partial = pool.hold(match.partial) if match.partial else None
        computed = len(matched) * pool.size + match.copied
        checkpoints = [] if pool.rewindable else [at for at in sequence.checkpoints if at > computed and at % pool.size]
        if self._pages_for(len(sequence.tokens)) - len(matched) + len(checkpoints) > pool.available:
            for page in (*reversed(matched), *([partial] if partial else [])):
                pool.release(page)
            return self._evict() and self._admit()
        self.waiting.remove(sequence)
        self.running.append(sequence)
        sequence.start(list(matched), computed)
        self._take_pages(sequence, checkpoints)
        if partial is not None:
            page = sequence.pages[len(matched)]
            self._copy_page(partial.number, page.number)
            page.computed = match.copied
            pool.release(partial)
        return True

    def _take_pages(self, sequence: Sequence, checkpoints: list[int]) -> None:
        """Take pages for all known tokens, and for snapshots of the state at `checkpoints`."""
        size, tokens, pages = self.pool.size, sequence.tokens, sequence.pages
        for index in range(len(pages), self._pages_for(len(tokens))):
            parent = pages[-1].digest if pages else ROOT
            assert parent is not None
            pages.append(self.pool.take(parent, tokens[index * size : (index + 1) * size]))
        for at in checkpoints:
            index = at // size
            snapshot = self.pool.take(pages[index].parent, tokens[index * size : at], final=True)
            sequence.snapshots.append((at, snapshot))

    def _release(self, sequence: Sequence, keep: bool) -> None:
        """Release all pages, the last first, so that it is evicted first."""
        for page in (*reversed(sequence.pages), *(page for _, page in sequence.snapshots)):
            self.pool.release(page, keep)
        sequence.stop()

    def _pages_for(self, tokens: int) -> int:
        return -(-tokens // self.pool.size)
