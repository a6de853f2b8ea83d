"""Tokenizers, chat templates, incremental detokenization."""

from .chat import encode_chat, render_chat
from .contents import Contents
from .folder import tokenizer_from_folder
from .gguf import tokenizer_from_gguf
from .tokenizer import StreamDecoder, Tokenizer, begun

__all__ = [
    "Contents",
    "StreamDecoder",
    "Tokenizer",
    "begun",
    "encode_chat",
    "render_chat",
    "tokenizer_from_folder",
    "tokenizer_from_gguf",
]
