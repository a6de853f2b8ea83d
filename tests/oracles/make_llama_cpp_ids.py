"""Makes llama_cpp_ids.json: what llama.cpp's tokenizer gives, frozen so that tests need no llama.cpp.

    pip install llama-cpp-python gguf tokenizers
    python tests/oracles/make_llama_cpp_ids.py SmolLM2-135M-Instruct.Q4_1.gguf

Made with llama-cpp-python 0.3.36. The small byte-level vocabulary is trained here without any cutting of
text, so that its merges reach across every boundary a pre-tokenizer might draw: two rules that cut a text
differently then give different ids.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import gguf
from llama_cpp import Llama
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

HERE = Path(__file__).parent

TEXTS = [
    "Hello   wörld 🤷🏽‍♀️👨‍👩‍👧‍👦 漢字かな交じり 12345  \n\n\t x == y<|im_end|>  <think> z",
    "   2024  and    5 123456 1234 3.14159",
    "def f(x):\n    return x**2  # ok\n\n\n\tif a:\t\tb\r\n\r\n",
    "naïve café ½ ² Ⅷ ٣ fooBar CamelCASE XMLHttp",
    "it's I'M we'LL 'S 'd don't/won't\u2019s",
    "\u3000全角 スペース、。！한국어 हिन्दी ภาษา ﬁ ǅ ʰ a\u0301 \u0301x",
    "a\u00a0b\u200bc\x01\ufeff",
    "...!!! $$+= <=> ^^ ~|`` `a` //\n /x/\n- item\n* it #tag @x (y) [z] {w} $100.50",
    "\n",
    " ",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
]

RULES = """
    default gpt-2 phi-2 mpt olmo jais trillion exaone4 smollm starcoder refact command-r codeshell exaone
    minerva-7b llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral dbrx smaug-bpe lfm2 midm-2.0 qwen2
    deepseek-r1-qwen stablelm2 hunyuan megrez tekken gpt-4o llama4 deepseek-v3
""".split()  # noqa: SIM905


def train() -> tuple[list[str], list[str]]:
    """Tokens and merges of a small vocabulary that knows no boundaries."""
    engine = Tokenizer(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    corpus = [path.read_text() for path in sorted((HERE.parent.parent / "src").rglob("*.py"))] + TEXTS * 20
    pieces = [text[start : start + 60] for text in corpus for start in range(0, len(text), 60)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1200, initial_alphabet=alphabet, show_progress=False)
    engine.train_from_iterator(pieces[:3000] + pieces[-1000:], trainer)
    model = json.loads(engine.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return [*tokens, "<|im_end|>", "<think>"], [" ".join(pair) for pair in model["merges"]]


def vocabulary_file(path: Path, pre: str, tokens: list[str], merges: list[str]) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    for add in ("context_length", "embedding_length", "block_count", "head_count", "feed_forward_length"):
        getattr(writer, f"add_{add}")(32)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_merges(merges)
    writer.add_token_types([1] * (len(tokens) - 2) + [3, 4])
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def ids(model: Llama, text: str, special: bool = False) -> list[int]:
    return model.tokenize(text.encode(), add_bos=False, special=special)


def main() -> None:
    tokens, merges = train()
    groups: dict[str, list[str]] = {}  # answer → the names that give it
    with tempfile.TemporaryDirectory() as folder:
        for pre in RULES:
            path = Path(folder) / f"{pre}.gguf"
            vocabulary_file(path, pre, tokens, merges)
            model = Llama(str(path), vocab_only=True, verbose=False)
            begins = model.tokenize(b"a", add_bos=True)[0] == len(tokens) - 2
            answer = {"ids": [ids(model, text) for text in TEXTS], "adds_bos": begins}
            groups.setdefault(json.dumps(answer), []).append(pre)
    real = Llama(sys.argv[1], vocab_only=True, verbose=False)
    smollm2 = {
        "text": [ids(real, text) for text in TEXTS],
        "special": [ids(real, text, special=True) for text in TEXTS],
    }
    rules = [{"names": names, **json.loads(answer)} for answer, names in groups.items()]
    answers = {"texts": TEXTS, "smollm2": smollm2, "tokens": tokens, "merges": merges, "rules": rules}
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}" for key, value in answers.items())
    (HERE / "llama_cpp_ids.json").write_text("{" + lines + "}\n")


if __name__ == "__main__":
    main()
