"""A tokenizer from a Hugging Face folder. Nothing in the folder is executed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from os.path import lexists
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import UsageError, read_regular
from .byte_decoding import ByteDecoding, byte_decoding_of, sentencepiece
from .errors import as_usage_error
from .gguf import ENDS
from .sentencepiece_model import read_sentencepiece
from .tokenizer import SpecialTokens, Tokenizer
from .vocab_engines import add_special, byte_level_engine, sentencepiece_engine, special_tokens

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

_LARGEST = 128 << 20  # bytes of one tokenizer file; Gemma's, the largest in use, has 34 million
_NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")


@dataclass(frozen=True)
class _Built:
    """An engine, and the file's special tokens by name and whether texts begin with bos."""

    engine: Engine
    byte_decoding: ByteDecoding
    names: Mapping[str, str] = field(default_factory=dict)
    begins: bool | None = None


def tokenizer_from_folder(path: Path | str) -> Tokenizer:
    """Build a model folder's tokenizer from tokenizer.json, tokenizer.model, or vocab.json with merges.txt.

    Special tokens, stop ids and the chat template come from tokenizer_config.json,
    special_tokens_map.json, generation_config.json, config.json and chat_template.jinja, if present.
    Raises UsageError if a file is missing or invalid.
    """
    folder = Path(path)
    config = _json(folder / "tokenizer_config.json")
    built = _build(folder, config)
    engine = built.engine
    names = {
        **built.names,
        **_special_names(_json(folder / "special_tokens_map.json")),
        **_special_names(config),
    }
    as_usage_error(folder, lambda: _register(engine, config, names))
    ids = {name: engine.token_to_id(text) for name, text in names.items()}
    control = frozenset(id for id, token in engine.get_added_tokens_decoder().items() if token.special)
    bos = ids.get("bos_token")
    return Tokenizer(
        engine,
        built.byte_decoding,
        SpecialTokens(
            control=control,
            stop=_stop_ids(folder, engine, ids.get("eos_token"), control),
            bos=bos,
            adds_bos=bos is not None and _adds_bos(folder, engine, config, bos, built.begins),
            texts=names,
        ),
        _templates(folder, config),
        name=str(path),
    )


def _build(folder: Path, config: Mapping[str, Any]) -> _Built:
    if lexists(folder / "tokenizer.json"):
        engine = _from_json(folder / "tokenizer.json")
        return _Built(engine, byte_decoding_of(engine, folder))
    if lexists(folder / "tokenizer.model"):
        return _from_sentencepiece(folder / "tokenizer.model")
    if lexists(folder / "vocab.json") and lexists(folder / "merges.txt"):
        engine = _from_vocabulary(folder, config)
        return _Built(engine, byte_decoding_of(engine, folder), begins=False)
    raise UsageError(f"{folder} has no tokenizer (tokenizer.json, tokenizer.model, or vocab.json with merges.txt)")


def _from_json(file: Path) -> Engine:
    from tokenizers import Tokenizer as Engine

    text = _text(file)
    engine = as_usage_error(file, lambda: Engine.from_str(text))
    added = _parse(text, file).get("added_tokens") or []
    for token in added:
        # The library gives a token the next free id if its own is taken or lies beyond the vocabulary.
        content, id = token["content"], token["id"]
        if engine.token_to_id(content) != id:
            raise UsageError(f"{file}: the added token {content!r} claims the id {id}: taken, or beyond the vocabulary")
    return engine


def _from_sentencepiece(file: Path) -> _Built:
    model = read_sentencepiece(_read(file), file)
    pieces = model.pieces
    engine = as_usage_error(file, lambda: sentencepiece_engine(pieces))
    as_usage_error(file, lambda: add_special(engine, special_tokens(pieces.tokens, pieces.types)))
    ids = {"bos_token": model.bos, "eos_token": model.eos, "unk_token": pieces.unknown}
    names = {name: pieces.tokens[id] for name, id in ids.items() if id is not None}
    return _Built(engine, ByteDecoding(sentencepiece, pieces.prefix_space), names, begins=True)


def _from_vocabulary(folder: Path, config: Mapping[str, Any]) -> Engine:
    """GPT-2's two files: token → id, and one merge per line."""
    file = folder / "vocab.json"
    vocabulary = _json(file)
    tokens = [token for token, _ in sorted(vocabulary.items(), key=lambda item: str(item[1]).zfill(12))]
    if [vocabulary[token] for token in tokens] != list(range(len(tokens))):
        raise UsageError(f"{file}: its ids are not the numbers from 0 to {len(tokens) - 1}")
    lines = _text(folder / "merges.txt").splitlines()
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in pairs):
        raise UsageError(f"{folder / 'merges.txt'}: a line is not two tokens with a space between")
    pre = "qwen2" if str(config.get("tokenizer_class", "")).startswith("Qwen2") else "gpt-2"
    return as_usage_error(file, lambda: byte_level_engine(vocabulary, pairs, pre))  # type: ignore[arg-type]


def _register(engine: Engine, config: Mapping[str, Any], names: Mapping[str, str]) -> None:
    """Register the configuration's special tokens, if the vocabulary has them."""
    from tokenizers import AddedToken

    more = config.get("additional_special_tokens", config.get("extra_special_tokens"))
    # The unknown token stays plain: unknown text correctly becomes it.
    named = [text for name, text in names.items() if name != "unk_token"]
    contents = [*named, *filter(None, map(_content, more if isinstance(more, list) else []))]
    declared = config.get("added_tokens_decoder")
    for token in declared.values() if isinstance(declared, dict) else []:
        if isinstance(token, dict) and token.get("special"):
            contents.append(_content(token) or "")
    special = {token.content for token in engine.get_added_tokens_decoder().values() if token.special}
    missing = [text for text in contents if text not in special and engine.token_to_id(text) is not None]
    engine.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in missing])


def _special_names(config: Mapping[str, Any]) -> dict[str, str]:
    """bos_token and so on, given as text or as an object with `content`."""
    found = {name: _content(config.get(name)) for name in _NAMED}
    return {name: text for name, text in found.items() if text}


def _content(token: Any) -> str | None:
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None


def _stop_ids(folder: Path, engine: Engine, eos: int | None, control: frozenset[int]) -> frozenset[int]:
    stop = {eos} | {id for id in control if engine.id_to_token(id) in ENDS}
    for name in ("generation_config.json", "config.json"):
        ids = _json(folder / name).get("eos_token_id")
        stop |= {id for id in (ids if isinstance(ids, list) else [ids]) if type(id) is int and id >= 0}
    return frozenset(id for id in stop if id is not None)


def _adds_bos(folder: Path, engine: Engine, config: Mapping[str, Any], bos: int, begins: bool | None) -> bool:
    says = config.get("add_bos_token")
    if isinstance(says, bool):
        return says
    if begins is not None:
        return begins
    # What the post-processor puts before a text:
    ids = as_usage_error(folder, lambda: engine.encode("", add_special_tokens=True).ids)
    return bool(ids[:1] == [bos])


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name. A separate file takes precedence over the configuration, as in transformers."""
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {entry.get("name"): entry.get("template") for entry in given if isinstance(entry, dict)}
    else:
        named = {"default": given}
    if lexists(folder / "chat_template.jinja"):
        named["default"] = _text(folder / "chat_template.jinja")
    return {str(name): text for name, text in named.items() if isinstance(text, str)}


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; {} if there is no such file."""
    return _parse(_text(file), file) if lexists(file) else {}


def _parse(text: str, file: Path) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as problem:
        raise UsageError(f"{file}: not valid JSON ({problem})") from None
    if not isinstance(data, dict):
        raise UsageError(f"{file}: holds a JSON {type(data).__name__}, not an object")
    return data


def _text(file: Path) -> str:
    try:
        return _read(file).decode()
    except UnicodeDecodeError:
        raise UsageError(f"{file}: not valid UTF-8") from None


def _read(file: Path) -> bytes:
    try:
        return read_regular(file, _LARGEST)
    except OSError as problem:
        raise UsageError(f"{file}: cannot be read ({problem.strerror})") from None
