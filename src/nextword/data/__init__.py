"""Text files into shards of tokens, and those into batches whose position is a function of seed and step."""

from .documents import Document, Faults, Sources, find_sources, read_documents
from .order import permute
from .packing import best_fit
from .shards import Dataset, open_dataset, prepare
from .streams import TokenStream
from .tokenizer_training import save_tokenizer, train_tokenizer
from .windows import IGNORED, Batch, Windows

__all__ = [
    "IGNORED",
    "Batch",
    "Dataset",
    "Document",
    "Faults",
    "Sources",
    "TokenStream",
    "Windows",
    "best_fit",
    "find_sources",
    "open_dataset",
    "permute",
    "prepare",
    "read_documents",
    "save_tokenizer",
    "train_tokenizer",
]
