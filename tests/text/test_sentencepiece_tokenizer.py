"""SentencePiece vocabularies, held to the sentencepiece package that trains them here."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from nextword.base import UsageError
from nextword.text import tokenizer_from_folder, tokenizer_from_gguf
from nextword.text.sentencepiece_model import read_sentencepiece

WORDS = "the of and to in is that it was for on are with as his they be at one have this from or by".split()  # noqa: SIM905
TEXTS = [
    "Hello   wörld 🤷🏽‍♀️👨‍👩‍👧‍👦 漢字かな 12345  \n\n\t x == y</s>  <think> z",
    "   2024  and    5 123456",
    "def f(x):\n    return x**2  # ok\n\n\n\tif a:\t\tb\r\n",
    "naïve café ½ ² Ⅷ ٣ ﬁ a\u0301",
    "it's that they're",
    "\u3000全角 スペース a\u00a0b\u200bc\x01",
    "<s>hi</s>",
    " ",
    "",
    "trailing  ",
]
LLAMA = {
    "model_type": "bpe", "byte_fallback": True, "normalization_rule_name": "identity", "split_digits": True,
    "remove_extra_whitespaces": False, "allow_whitespace_only_pieces": True, "character_coverage": 0.99,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "as Llama has it": LLAMA,
    "without a first space": LLAMA | {"add_dummy_prefix": False},
    # With a first space, tokenizers and llama.cpp put one after each such piece; sentencepiece does not.
    "with pieces of the user's": LLAMA
    | {"add_dummy_prefix": False, "user_defined_symbols": ["<think>", "12", "\n\n"]},
    "BPE as the package has it": {"model_type": "bpe", "character_coverage": 0.98},
    "unigram as the package has it": {"model_type": "unigram", "character_coverage": 0.98},
    "unigram with bytes, NFKC": {
        "model_type": "unigram", "byte_fallback": True, "normalization_rule_name": "nfkc",
    },
}  # fmt: skip


def corpus() -> list[str]:
    rng = random.Random(0)
    lines = [" ".join(rng.choices(WORDS, k=12)) for _ in range(400)]
    return lines + [line for text in TEXTS[:6] for line in text.splitlines()] * 10


def train(**options: Any) -> bytes:
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=out, vocab_size=420, hard_vocab_limit=False,
        minloglevel=2, num_threads=1, **options,
    )  # fmt: skip
    return out.getvalue()


@pytest.fixture(scope="module", params=list(KINDS))
def trained(request, tmp_path_factory) -> tuple[Path, sentencepiece.SentencePieceProcessor]:
    folder = tmp_path_factory.mktemp("sentencepiece")
    (folder / "tokenizer.model").write_bytes(train(**KINDS[request.param]))
    return folder, sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


def test_a_folder_with_tokenizer_model_gives_sentencepieces_ids(trained):
    folder, theirs = trained
    tokenizer = tokenizer_from_folder(folder)
    for text in TEXTS:
        ids = theirs.encode(text)
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids).replace("<unk>", " ⁇ ") == theirs.decode(ids)
    assert tokenizer.vocabulary == theirs.vocab_size()
    assert (tokenizer.bos_id, tokenizer.stop_ids) == (theirs.bos_id(), {theirs.eos_id()})
    assert tokenizer.adds_bos


def test_control_tokens_are_written_only_when_asked_for(trained):
    folder, theirs = trained
    tokenizer = tokenizer_from_folder(folder)
    assert {theirs.bos_id(), theirs.eos_id()}.isdisjoint(tokenizer.encode("<s>hi</s>"))
    ids = tokenizer.encode("<s>hi</s>", special=True)
    assert (ids[0], ids[-1]) == (theirs.bos_id(), theirs.eos_id())
    assert tokenizer.decode(ids) == "hi"


def as_gguf(theirs: sentencepiece.SentencePieceProcessor, **changes: Any) -> dict[str, Any]:
    """The metadata that llama.cpp's converter writes for a SentencePiece model."""
    ids = range(theirs.vocab_size())
    user = {theirs.piece_to_id(piece) for piece in ("<think>", "12", "\n\n")}
    kinds = [(theirs.is_control, 3), (theirs.is_unknown, 2), (theirs.is_byte, 6), (user.__contains__, 4)]
    types = [next((number for test, number in kinds if test(id)), 1) for id in ids]
    return {
        "general.architecture": "llama",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [theirs.id_to_piece(id) for id in ids],
        "tokenizer.ggml.scores": [theirs.get_score(id) for id in ids],
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    } | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}


@pytest.mark.parametrize("prefix", [True, False])
def test_a_gguf_of_kind_llama_gives_sentencepieces_ids(prefix):
    theirs = sentencepiece.SentencePieceProcessor(model_proto=train(**LLAMA, add_dummy_prefix=prefix))
    tokenizer = tokenizer_from_gguf(as_gguf(theirs, add_space_prefix=prefix))
    for text in TEXTS:
        assert tokenizer.encode(text) == theirs.encode(text)
        assert tokenizer.decode(theirs.encode(text)) == theirs.decode(theirs.encode(text))
    assert tokenizer.adds_bos


def test_a_gguf_of_gemma_gives_sentencepieces_ids_and_keeps_runs_of_spaces_whole():
    options = LLAMA | {"add_dummy_prefix": False, "user_defined_symbols": ["▁▁", "▁▁▁", "▁▁▁▁", "\n\n"]}
    theirs = sentencepiece.SentencePieceProcessor(model_proto=train(**options))
    metadata = as_gguf(theirs) | {"general.architecture": "gemma2"}
    spaces = [theirs.piece_to_id("▁" * count) for count in (2, 3, 4)]
    for id in spaces:  # Gemma's files write them as spaces, with a score that says nothing
        metadata["tokenizer.ggml.tokens"][id] = " " * len(theirs.id_to_piece(id))
        metadata["tokenizer.ggml.scores"][id] = -1000.0
    tokenizer = tokenizer_from_gguf(metadata)
    for text in [*TEXTS, "a    b   c  d\n\n\n\n    e"]:
        assert tokenizer.encode(text) == theirs.encode(text)
        assert tokenizer.decode(theirs.encode(text)) == text
    assert set(spaces) <= set(tokenizer.encode("a    b   c  d"))


def test_gemmas_ids_are_transformers(tmp_path):
    import gguf
    from transformers import AutoTokenizer

    options = LLAMA | {"add_dummy_prefix": False, "user_defined_symbols": ["▁▁", "▁▁▁", "\n\n"]}
    theirs = sentencepiece.SentencePieceProcessor(model_proto=train(**options))
    metadata = as_gguf(theirs) | {"general.architecture": "gemma2"}
    for count in (2, 3):
        metadata["tokenizer.ggml.tokens"][theirs.piece_to_id("▁" * count)] = " " * count
    writer = gguf.GGUFWriter(tmp_path / "gemma.gguf", "gemma2")
    for add in ("context_length", "embedding_length", "block_count", "head_count", "feed_forward_length"):
        getattr(writer, f"add_{add}")(32)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(metadata["tokenizer.ggml.tokens"])
    writer.add_token_scores(metadata["tokenizer.ggml.scores"])
    writer.add_token_types(metadata["tokenizer.ggml.token_type"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    oracle = AutoTokenizer.from_pretrained(tmp_path, gguf_file="gemma.gguf")
    tokenizer = tokenizer_from_gguf(metadata)
    for text in TEXTS:
        assert tokenizer.encode(text) == oracle(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def test_a_text_that_goes_on_keeps_its_first_space():
    theirs = sentencepiece.SentencePieceProcessor(model_proto=train(**LLAMA))
    tokenizer = tokenizer_from_gguf(as_gguf(theirs))
    ids = tokenizer.encode("that was")
    assert tokenizer.decode(ids) == "that was"
    assert tokenizer.decode(ids, continues=True) == " that was"
    stream = tokenizer.stream()
    assert "".join(map(stream.push, ids)) + stream.flush() == " that was"


def test_byte_tokens_of_one_character_come_out_together():
    theirs = sentencepiece.SentencePieceProcessor(model_proto=train(**LLAMA))
    tokenizer = tokenizer_from_gguf(as_gguf(theirs))
    ids = theirs.encode("🦖")
    assert len(ids) == 5  # ▁ and four bytes
    stream = tokenizer.stream(continues=False)
    assert [stream.push(id) for id in ids] == ["", "", "", "", "🦖"]


@pytest.mark.parametrize("change", ["cut", "flip", "other"])
def test_a_broken_tokenizer_model_is_refused_or_harmless(tmp_path, change):
    data = train(**LLAMA)
    rng = random.Random(change)
    refused = 0
    for _ in range(60):
        position = rng.randrange(len(data))
        broken = data[:position] if change == "cut" else bytearray(data)
        if change == "flip":
            broken[position] ^= 1 << rng.randrange(8)
        elif change == "other":
            broken = rng.randbytes(rng.randrange(200))
        (tmp_path / "tokenizer.model").write_bytes(broken)
        try:
            tokenizer_from_folder(tmp_path).encode("that was")
        except UsageError as problem:
            refused += str(tmp_path) in str(problem) and "\n" not in str(problem)
    assert refused > (5 if change == "flip" else 30)


def test_a_number_of_pieces_that_cannot_be_is_refused():
    with pytest.raises(UsageError, match="more than 2097152 pieces"):
        read_sentencepiece(b"\n\x00" * (2**21 + 1), "tokenizer.model")
