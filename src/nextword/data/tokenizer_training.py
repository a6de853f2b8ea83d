"""Trains tokenizers on a text: byte-level BPE, bytes, characters."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ..base import UsageError, atomic_write
from ..plan.run_config import FEWEST_IDS
from ..text import Tokenizer, tokenizer_from_folder

TOKENIZERS = ("bpe", "bytes", "characters")
END, UNKNOWN = "<|endoftext|>", "<|unk|>"  # END has id 0
# Letters with one leading character, up to three digits, punctuation, line ends: the split of Llama 3 and GPT-4.
_SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def train_tokenizer(texts: Iterable[str], kind: str = "bpe", vocabulary: int = 4096) -> Tokenizer:
    """A tokenizer of `kind` with at most `vocabulary` tokens, trained on `texts`; id 0 ends a document.

    "bpe": byte-level byte-pair encoding; no text is unknown. "bytes": 256 bytes and the end. "characters": those of
    the texts, the end, and an unknown token. `vocabulary` only applies to "bpe".
    """
    from tokenizers import Tokenizer as Engine
    from tokenizers import decoders, models, pre_tokenizers, trainers
    from tokenizers.pre_tokenizers import Split

    if kind not in TOKENIZERS:
        raise UsageError(f"tokenizer {kind!r} is not known. Made here: {', '.join(TOKENIZERS)}")
    if kind == "characters":
        tokens = [END, UNKNOWN, *sorted({character for text in texts for character in text})]
        engine = Engine(models.BPE(vocab=_numbered(tokens), merges=[], unk_token=UNKNOWN))
        engine.decoder = decoders.Fuse()
        return _made(engine)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if kind == "bytes":
        engine = Engine(models.BPE(vocab=_numbered([END, *alphabet]), merges=[]))
        engine.pre_tokenizer = whole
    else:
        if vocabulary < FEWEST_IDS:
            raise UsageError(
                f"a byte-level vocabulary has at least {FEWEST_IDS} tokens, not {vocabulary}; or use bytes"
            )
        from tokenizers import Regex

        engine = Engine(models.BPE())
        engine.pre_tokenizer = pre_tokenizers.Sequence([Split(Regex(_SPLIT), "isolated"), whole])
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
        )
        engine.train_from_iterator(_bounded(texts), trainer)
    engine.decoder = decoders.ByteLevel()
    return _made(engine)


def named_tokenizer(name: str, setting: str) -> Tokenizer:
    """The tokenizer of model `name`, without reading tensors; errors begin with `setting` and the name.

    Raises UsageError if there is no such model.
    """
    from ..weights.catalogue import resolve
    from ..weights.loading import open_source

    try:
        return open_source(resolve(name)).tokenizer()
    except UsageError as error:
        raise UsageError(f"{setting}{name}: give {', '.join(TOKENIZERS)} or a model; {error}") from None


def _numbered(tokens: list[str]) -> dict[str, int]:
    return {token: number for number, token in enumerate(tokens)}


def _bounded(texts: Iterable[str]) -> Iterator[str]:
    """Texts in parts of a megabyte, so that a long one does not take double the memory."""
    for text in texts:
        for start in range(0, len(text), 1 << 20):
            yield text[start : start + (1 << 20)]


def _made(engine: Any) -> Tokenizer:
    from tokenizers import AddedToken

    engine.add_special_tokens([AddedToken(END, normalized=False, special=True)])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokenizer.json").write_text(engine.to_str(), encoding="utf-8")
        write_config(folder, {"eos_token": END})
        tokenizer = tokenizer_from_folder(folder)
    tokenizer.name = "the tokenizer of this run"
    return tokenizer


def write_config(folder: Path, special: dict[str, str], adds_bos: bool = False) -> None:
    """Write tokenizer_config.json, which transformers needs to open tokenizer.json."""
    values = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
              "add_bos_token": adds_bos, **special}  # fmt: skip
    with atomic_write(folder / "tokenizer_config.json") as file:
        file.write(json.dumps(values, indent=2) + "\n")


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json to an existing folder."""
    with atomic_write(folder / "tokenizer.json") as file:
        file.write(tokenizer.to_json())
    write_config(folder, dict(tokenizer.special.texts), tokenizer.adds_bos)
