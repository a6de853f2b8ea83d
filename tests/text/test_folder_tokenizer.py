"""Tokenizers of Hugging Face folders, held to transformers on folders that transformers wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Engine
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast

from nextword.base import UsageError
from nextword.text import tokenizer_from_folder

ORACLE = json.loads((Path(__file__).parent.parent / "oracles" / "llama_cpp_ids.json").read_text())
TEXTS: list[str] = [*ORACLE["texts"], "a<|user|>b<|end|> c<think>d  e</think>", "  leading and trailing  "]


def byte_level() -> Engine:
    """As GPT-2, Llama 3 and Qwen have it."""
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    engine.train_from_iterator(
        TEXTS * 5,
        trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
            special_tokens=["<|begin|>", "<|end|>"],
        ),
    )  # fmt: skip
    engine.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    return engine


def sentencepiece_like() -> Engine:
    """As Llama 2's tokenizer.json has it."""
    engine = Engine(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    engine.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    engine.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    specials = ["<unk>", "<|begin|>", "<|end|>", *(f"<0x{byte:02X}>" for byte in range(256))]
    engine.train_from_iterator(
        TEXTS[:3] * 5, trainers.BpeTrainer(vocab_size=400, show_progress=False, special_tokens=specials)
    )
    data = json.loads(engine.to_str())
    data["added_tokens"] = data["added_tokens"][:3]  # byte tokens are of the vocabulary, not special
    return Engine.from_str(json.dumps(data))


def metaspace() -> Engine:
    """As newer conversions of SentencePiece models have it."""
    engine = sentencepiece_like()
    engine.normalizer = normalizers.NFC()
    engine.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return engine


def with_begin(engine: Engine) -> Engine:
    begin = engine.token_to_id("<|begin|>")
    engine.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", pair="<|begin|> $A $B", special_tokens=[("<|begin|>", begin)]
    )
    return engine


def save(folder: Path, engine: Engine, **config: Any) -> Path:
    PreTrainedTokenizerFast(
        tokenizer_object=engine, bos_token="<|begin|>", eos_token="<|end|>", **config
    ).save_pretrained(folder)
    return folder


ENGINES = {"byte-level": byte_level, "SentencePiece-like": sentencepiece_like, "metaspace": metaspace}


@pytest.mark.parametrize("name", ENGINES)
def test_a_folder_of_transformers_gives_transformers_ids_and_text(tmp_path, name):
    save(tmp_path, ENGINES[name](), additional_special_tokens=["<|user|>"])
    theirs, tokenizer = AutoTokenizer.from_pretrained(tmp_path), tokenizer_from_folder(tmp_path)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, special=True) == ids
        options = {"clean_up_tokenization_spaces": False}
        assert tokenizer.decode(ids, special=True) == theirs.decode(ids, **options)
        assert tokenizer.decode(ids) == theirs.decode(ids, skip_special_tokens=True, **options)
        plain = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert tokenizer.encode(text) == plain
    assert tokenizer.vocabulary == len(theirs)
    assert tokenizer.bos_id == theirs.bos_token_id
    assert tokenizer.stop_ids == {theirs.eos_token_id}


def test_the_real_models_tokenizer_saved_as_a_folder_is_the_same(tmp_path, smollm2_path):
    theirs = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    theirs.save_pretrained(tmp_path)
    tokenizer = tokenizer_from_folder(tmp_path)
    for text in TEXTS:
        assert tokenizer.encode(text, special=True) == theirs(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.chat_template == theirs.chat_template
    assert {tokenizer.token_text(id) for id in tokenizer.stop_ids} == {"<|im_end|>", "<|endoftext|>"}


def test_vocab_json_and_merges_txt_are_enough(tmp_path):
    saved = json.loads(byte_level().to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(saved["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in saved["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|begin|>", "eos_token": {"content": "<|end|>"}})
    )
    theirs = GPT2Tokenizer(
        vocab=saved["vocab"], merges=[tuple(pair) for pair in saved["merges"]], bos_token="<|begin|>",
        eos_token="<|end|>", unk_token="<|end|>",
    )  # fmt: skip
    tokenizer = tokenizer_from_folder(tmp_path)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.encode(text, special=True) == ids
        assert tokenizer.decode(ids, special=True) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    assert not tokenizer.adds_bos
    assert tokenizer.stop_ids == {theirs.eos_token_id}


def test_whether_texts_begin_with_bos_is_read_from_the_post_processor_or_the_configuration(tmp_path):
    assert not tokenizer_from_folder(save(tmp_path / "plain", byte_level())).adds_bos
    folder = save(tmp_path / "begins", with_begin(byte_level()))
    assert tokenizer_from_folder(folder).adds_bos
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"add_bos_token": False}))
    assert not tokenizer_from_folder(folder).adds_bos


def test_stop_ids_come_from_every_file_that_names_them(tmp_path):
    save(tmp_path, byte_level())
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [5, 6]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert tokenizer_from_folder(tmp_path).stop_ids == {1, 5, 6, 7}


def test_chat_templates_come_as_text_as_a_list_and_as_a_file(tmp_path):
    save(tmp_path, byte_level())
    file = tmp_path / "tokenizer_config.json"
    config = json.loads(file.read_text())
    assert tokenizer_from_folder(tmp_path).chat_template is None
    file.write_text(json.dumps(config | {"chat_template": "plain"}))
    assert tokenizer_from_folder(tmp_path).chat_template == "plain"
    named = [{"name": "default", "template": "first"}, {"name": "tool_use", "template": "second"}]
    file.write_text(json.dumps(config | {"chat_template": named}))
    assert tokenizer_from_folder(tmp_path).chat_templates == {"default": "first", "tool_use": "second"}
    (tmp_path / "chat_template.jinja").write_text("of the file")
    assert tokenizer_from_folder(tmp_path).chat_template == "of the file"


def test_truncation_and_padding_saved_with_a_tokenizer_do_not_cut_texts(tmp_path):
    engine = byte_level()
    engine.enable_truncation(4)
    engine.enable_padding(length=9)
    engine.save(str(tmp_path / "tokenizer.json"))
    tokenizer = tokenizer_from_folder(tmp_path)
    assert tokenizer.decode(tokenizer.encode(TEXTS[0])) == TEXTS[0]


def test_a_folder_without_a_tokenizer_says_what_it_needs(tmp_path):
    with pytest.raises(UsageError, match=r"has no tokenizer \(tokenizer\.json, tokenizer\.model"):
        tokenizer_from_folder(tmp_path)


def _edit(**changes: Any) -> str:
    return json.dumps(json.loads(byte_level().to_str()) | changes)


def _added(id: int, content: str) -> list[dict[str, Any]]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return [{"id": id, "content": content, **flags}]


WRONG = {
    "no JSON": "{",
    "no object": "[]",
    "deep nesting": "[" * 100_000,
    "no UTF-8": b"\xff\xfe",
    "an empty object": "{}",
    "an unknown model": _edit(model={"type": "Strange"}),
    "merges of unknown tokens": _edit(model={"type": "BPE", "vocab": {"a": 0}, "merges": ["x y"]}),
    "negative ids": _edit(model={"type": "BPE", "vocab": {"a": -1}, "merges": []}),
    "an added token far beyond the vocabulary": _edit(added_tokens=_added(4_000_000_000, "<far>")),
    "an added token on another's id": _edit(added_tokens=_added(3, "<other>")),
    "an id beyond 32 bits": _edit(added_tokens=_added(2**40, "<far>")),
    "an expression that does not close": _edit(
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(a"}, "behavior": "Isolated", "invert": False}
    ),
    "an unknown decoder": _edit(decoder={"type": "WordPiece", "prefix": "##", "cleanup": True}),
    "a decoder by expression": _edit(
        decoder={"type": "Replace", "pattern": {"Regex": "a+"}, "content": " "},
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_tokenizer_json_that_makes_no_sense_is_refused_in_one_line(tmp_path, name):
    text = WRONG[name]
    (tmp_path / "tokenizer.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError) as caught:
        tokenizer_from_folder(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json", "generation_config.json"])
def test_a_configuration_that_is_no_json_is_named(tmp_path, file):
    save(tmp_path, byte_level())
    (tmp_path / file).write_text("not json")
    with pytest.raises(UsageError, match=f"{file}: not valid JSON"):
        tokenizer_from_folder(tmp_path)


def test_an_expression_that_never_ends_stops_with_a_line(tmp_path):
    bomb = {"type": "Split", "pattern": {"Regex": "(x+)+$"}, "behavior": "Isolated", "invert": False}
    (tmp_path / "tokenizer.json").write_text(_edit(pre_tokenizer=bomb))
    with pytest.raises(UsageError, match="cannot encode this text"):
        tokenizer_from_folder(tmp_path).encode("x" * 4000 + "y")


HALF_VOCABULARIES = [
    {"vocab.json": '{"a": 0, "b": 2}'},
    {"vocab.json": '{"a": 0}', "merges.txt": "a b c"},
    {"vocab.json": '{"a": 0, "b": "c"}'},
]


@pytest.mark.parametrize("files", HALF_VOCABULARIES)
def test_a_vocabulary_in_two_files_that_makes_no_sense_is_refused(tmp_path, files):
    for name, text in ({"merges.txt": ""} | files).items():
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError):
        tokenizer_from_folder(tmp_path)
