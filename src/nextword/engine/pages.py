"""The page pool: reference counts, and the prefix cache.

A full page is identified by a hash of its tokens and of everything before them: (hash of the previous page, its
tokens). A page that no sequence uses stays cached until its memory is needed, least recently used first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

ROOT = b""  # hash of what precedes the first page
LEAST_COPIED = 8  # tokens; copying a shorter shared prefix of a page is not worth waiting for
MOST_COMPARED = 32  # pages compared with the rest of a prompt, newest first


@dataclass
class Page:
    """One page in use or cached. `computed` of its `tokens` are filled in: a prompt's tokens are known before that."""

    number: int
    parent: bytes = ROOT  # hash of the previous page
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    references: int = 0
    digest: bytes | None = None  # its hash, once full
    final: bool = False  # whether it will not grow any more


@dataclass
class Match:
    """A prompt's cached prefix: full `pages`, and `copied` tokens of `partial`."""

    pages: list[Page] = field(default_factory=list)
    partial: Page | None = None
    copied: int = 0

    @property
    def computed(self) -> bool:
        """Whether all of it has been computed; otherwise it is worth waiting for."""
        whole = all(page.computed == len(page.tokens) for page in self.pages)
        return whole and (self.partial is None or self.partial.computed >= self.copied)


class PagePool:
    """`count` pages of `size` tokens. `rewindable`: whether a prefix of a page is usable (not for recurrent states)."""

    def __init__(self, count: int, size: int, rewindable: bool) -> None:
        self.count, self.size, self.rewindable = count, size, rewindable
        self._free: list[int] = []  # released
        self._unused = 0  # pages from here on were never taken, which keeps used memory compact
        self._cached: OrderedDict[int, Page] = OrderedDict()  # unreferenced, least recently used first
        self._found: dict[bytes, Page] = {}  # full pages by hash
        self._children: defaultdict[bytes, dict[int, Page]] = defaultdict(dict)  # pages by the hash of the previous one

    @property
    def available(self) -> int:
        """Pages that can be taken."""
        return len(self._free) + self.count - self._unused + len(self._cached)

    @property
    def used(self) -> int:
        """Pages held by sequences."""
        return self.count - self.available

    def match(self, tokens: Sequence[int], limit: int) -> Match:
        """The longest prefix of `tokens[:limit]` that pages hold or are about to hold."""
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
        """How many of `tokens` a page can provide."""
        shared = common_prefix(page.tokens, tokens)
        return shared if self.rewindable or shared == len(page.tokens) else 0

    def hold(self, page: Page) -> Page:
        """Add a reference."""
        self._cached.pop(page.number, None)
        page.references += 1
        return page

    def take(self, parent: bytes = ROOT, tokens: Iterable[int] = (), final: bool = False) -> Page:
        """Take a page for one sequence, with `tokens` still to be computed. One must be `available`."""
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
        """Record that `tokens` are computed in the page at offset `start`, after the page with hash `parent`."""
        if not page.tokens:
            page.parent = parent
        if len(page.tokens) < start + len(tokens):
            page.tokens[start:] = tokens
            self._remember(page)
        page.computed = start + len(tokens)

    def release(self, page: Page, keep: bool = True) -> None:
        """Drop a reference. With `keep`, an unreferenced page stays cached as far as it is computed."""
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
        """Index the page: by its hash if full, and by its prefix unless that may still be overwritten."""
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
    """The hash of a full page: cryptographic, so that no chosen text can collide with another."""
    from hashlib import blake2b  # loads OpenSSL, for which a short text should not wait

    return blake2b(array("q", tokens).tobytes(), digest_size=16, key=parent).digest()


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the common prefix."""
    for index, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return index
    return min(len(one), len(other))
