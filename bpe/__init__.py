"""Byte-level byte-pair encoding in pure Python: exact, fast, and readable.

import bpe

tokenizer = bpe.train("stories.txt", 3000)
ids = tokenizer.encode("Once upon a time")
tokenizer.decode(ids)
tokenizer.save("tokenizer.json")
tokenizer = bpe.load("tokenizer.json")
"""

from bpe.base import StreamDecoder, Tokenizer, from_dict
from bpe.bytelevel import BPETokenizer
from bpe.char import CharTokenizer
from bpe.errors import TokenizerError, UsageError
from bpe.formats import load
from bpe.patterns import PATTERNS
from bpe.reduced import ReducedTokenizer

train = BPETokenizer.train

__all__ = [
    "PATTERNS",
    "BPETokenizer",
    "CharTokenizer",
    "ReducedTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "UsageError",
    "from_dict",
    "load",
    "train",
]
