"""Text files → token shards → batches, in an order that is a function of seed and step."""

from .dataset import Dataset, open_dataset
from .documents import Document, Faults, Sources, check_encoding, find_sources
from .order import permute
from .packing import best_fit
from .reading import read_documents
from .shards import measure_bytes_per_token, prepare, prepare_in
from .streams import IGNORED, TokenStream
from .tokenizer_training import save_tokenizer, train_tokenizer
from .windows import Batch, Windows

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
    "check_encoding",
    "find_sources",
    "measure_bytes_per_token",
    "open_dataset",
    "permute",
    "prepare",
    "prepare_in",
    "read_documents",
    "save_tokenizer",
    "train_tokenizer",
]
