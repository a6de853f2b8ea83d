"""How hard a text is to predict, measured in a second on samples of it.

Small models learn which token follows which, and larger ones what repeats: the two numbers here. Both are of text held
out from the model; the length of the text alone, compressed, tells far less (docs/decisions.md).
"""

from __future__ import annotations

import bz2
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .streams import TokenStream
from .tokenizer_training import train_tokenizer

if TYPE_CHECKING:
    from .dataset import Dataset

_TRAIN, _HELD_OUT = 1 << 18, 1 << 16  # bytes of the samples
_SPAN = 2048  # tokens of a span of a sample
_VOCABULARY = 512  # of the tokens counted, whatever the model's is
_FEWEST = 64  # bytes of each sample; less says nothing
_GUESS = 8.0  # bits a byte


@dataclass(frozen=True)
class Difficulty:
    """Bits a byte of held-out text: by counts of pairs of tokens, and by a compressor that has read the other text."""

    bigrams: float
    repeats: float


def difficulty(data: Dataset) -> Difficulty:
    """The difficulty of prepared text, 8 bits a byte where it is too short to say."""
    train, held_out = _sample(data, data.train, _TRAIN), _sample(data, data.val, _HELD_OUT)
    size = len(held_out.encode())
    if min(len(train), size) < _FEWEST:
        return Difficulty(_GUESS, _GUESS)
    tokenizer = train_tokenizer([train], vocabulary=_VOCABULARY)
    ids, targets = (np.asarray(tokenizer.encode(text), np.int64) for text in (train, held_out))
    bits = bigram_bits(ids, targets, tokenizer.vocabulary)
    both, alone = (len(bz2.compress(text.encode())) for text in (train + held_out, train))
    return Difficulty(bits * (targets.size - 1) / size, 8 * (both - alone) / size)


def bigram_bits(train: NDArray[np.int64], held_out: NDArray[np.int64], vocabulary: int) -> float:
    """Bits a token of `held_out`, from its second on, by counts of tokens and of pairs of them in `train`.

    p_k = (count + kinds p_(k-1)) / (total + kinds), over the tokens after the last k in `train`, of which `kinds` are
    different (Witten and Bell 1991, "The zero-frequency problem", method C); p_(-1) is a guess.
    """
    counts = np.bincount(train, minlength=vocabulary)
    different = int(np.count_nonzero(counts))
    single = ((counts + different / vocabulary) / (train.size + different))[held_out[1:]]
    pairs, number = np.unique(train[:-1] * vocabulary + train[1:], return_counts=True)
    before, wanted = held_out[:-1], held_out[:-1] * vocabulary + held_out[1:]
    total = np.bincount(train[:-1], minlength=vocabulary)[before]
    kinds = np.bincount(pairs // vocabulary, minlength=vocabulary)[before]
    places = np.minimum(np.searchsorted(pairs, wanted), pairs.size - 1)
    seen = np.where(pairs[places] == wanted, number[places], 0)
    p = np.where(total > 0, (seen + kinds * single) / np.maximum(1, total + kinds), single)
    return float(-np.log2(p).mean())


def _sample(data: Dataset, stream: TokenStream, most: int) -> str:
    """Evenly spaced spans of a stream as text of about `most` bytes at most."""
    tokens = round(most / data.bytes_per_token)
    if stream.tokens > max(tokens, _SPAN):
        stream = stream.spread(max(1, tokens // _SPAN), _SPAN)
    return data.tokenizer().decode(stream.read(0, stream.tokens).tolist())
