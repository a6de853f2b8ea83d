"""Pages of memory: who uses them, and which hold tokens that another sequence begins with (the prefix cache).

A page is known by what it holds and by everything before it: by a digest of (digest of the page before it, its
tokens). A page that no sequence uses any more stays until its memory is needed, the least recently used first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice

ROOT = b""  # digest of what lies before the first page
LEAST_COPIED = 8  # tokens from which on a copy of the beginning of another sequence's page is worth a wait
MOST_COMPARED = 32  # pages whose beginning is compared with a prompt's, the newest first


@dataclass
class Page:
    """One page in use or cached. `computed` of its `tokens` are there: of a prompt they are known before that."""

    number: int
    parent: bytes = ROOT  # digest of the page before it
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    references: int = 0
    digest: bytes | None = None  # once it is full and can be found
    final: bool = False  # whether nothing will be added to it


@dataclass
class Match:
    """What a prompt has in common with pages: `pages` whole, and `copied` tokens of `partial`."""

    pages: list[Page] = field(default_factory=list)
    partial: Page | None = None
    copied: int = 0

    @property
    def computed(self) -> bool:
        """Whether all of it has been computed; else it is worth a wait."""
        whole = all(page.computed == len(page.tokens) for page in self.pages)
        return whole and (self.partial is None or self.partial.computed >= self.copied)


class PagePool:
    """`count` pages of `size` tokens. `rewindable`: whether the beginning of a page can be used without its end."""

    def __init__(self, count: int, size: int, rewindable: bool) -> None:
        self.count, self.size, self.rewindable = count, size, rewindable
        self._free: list[int] = []  # given back
        self._unused = 0  # the pages from here on were never taken: the memory in use stays compact
        self._cached: OrderedDict[int, Page] = OrderedDict()  # that no sequence uses, least recently used first
        self._found: dict[bytes, Page] = {}  # full pages by digest
        self._children: defaultdict[bytes, dict[int, Page]] = defaultdict(dict)  # by the digest before them

    @property
    def available(self) -> int:
        """Pages that can be had."""
        return len(self._free) + self.count - self._unused + len(self._cached)

    @property
    def used(self) -> int:
        """Pages that sequences hold."""
        return self.count - self.available

    def match(self, tokens: Sequence[int], limit: int) -> Match:
        """The longest beginning of `tokens[:limit]` that pages hold or are about to hold."""
        match, parent, start = Match(), ROOT, 0
        while start + self.size <= limit:
            page = self._found.get(digest_of(parent, tokens[start : start + self.size]))
            if page is None:
                break
            assert page.digest is not None
            match.pages.append(page)
            parent, start = page.digest, start + self.size
        rest = tokens[start : min(limit, start + self.size)]
        newest_first = reversed(self._children.get(parent, {}).values())
        for page in islice(newest_first, MOST_COMPARED):
            copied = self._usable(page, rest)
            if copied > match.copied and (copied >= LEAST_COPIED or start + copied == limit):
                match.partial, match.copied = page, copied
        return match

    def _usable(self, page: Page, tokens: Sequence[int]) -> int:
        """How many of `tokens` can be had from the beginning of a page."""
        shared = common(page.tokens, tokens)
        return shared if self.rewindable or shared == len(page.tokens) else 0

    def hold(self, page: Page) -> Page:
        """Count one sequence more that uses the page."""
        self._cached.pop(page.number, None)
        page.references += 1
        return page

    def take(self, parent: bytes = ROOT, tokens: Iterable[int] = (), final: bool = False) -> Page:
        """A page for one sequence, with `tokens` that will be computed. There must be one `available`."""
        if self._free:
            number = self._free.pop()
        elif self._unused < self.count:
            number, self._unused = self._unused, self._unused + 1
        else:
            number, evicted = self._cached.popitem(last=False)
            self._forget(evicted)
        page = Page(number, parent, list(tokens), references=1, final=final)
        if page.tokens:
            self._remember(page)
        return page

    def computed(self, page: Page, parent: bytes, tokens: Sequence[int], start: int) -> None:
        """`tokens` have been computed into the page from its place `start` on, behind the page of digest `parent`."""
        if not page.tokens:
            page.parent = parent
        if len(page.tokens) < start + len(tokens):
            page.tokens[start:] = tokens
            self._remember(page)
        page.computed = start + len(tokens)

    def release(self, page: Page, keep: bool = True) -> None:
        """Count one sequence less. The last one's page stays cached as far as it is computed, unless not to `keep`."""
        page.references -= 1
        if page.references:
            return
        if page.computed < len(page.tokens):
            self._forget(page)
            del page.tokens[page.computed if self.rewindable else 0 :]
        if not keep or not page.tokens:
            self._forget(page)
            self._free.append(page.number)
            return
        page.final = True
        self._remember(page)
        if page.digest is not None and self._found.get(page.digest) is not page:  # another holds the same
            self._forget(page)
            self._free.append(page.number)
        else:
            self._cached[page.number] = page

    def _remember(self, page: Page) -> None:
        """Let the page be found: whole by its digest, and by how it begins unless that may yet be written over."""
        if self.rewindable or len(page.tokens) == self.size or page.final:
            self._children[page.parent][page.number] = page
        if len(page.tokens) == self.size:
            page.digest = digest_of(page.parent, page.tokens)
            self._found.setdefault(page.digest, page)

    def _forget(self, page: Page) -> None:
        siblings = self._children.get(page.parent, {})
        if siblings.get(page.number) is page:
            del siblings[page.number]
            if not siblings:
                del self._children[page.parent]
        if page.digest is not None and self._found.get(page.digest) is page:
            del self._found[page.digest]
        page.digest = None


def digest_of(parent: bytes, tokens: Sequence[int]) -> bytes:
    """What a full page is found by. Digests of different texts do not meet, whoever chose the texts."""
    return blake2b(array("q", tokens).tobytes(), digest_size=16, key=parent).digest()


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
