"""Byte-level byte-pair encoding in pure Python: exact, fast, and readable.

import bpe

tokenizer = bpe.train("stories.txt", 3000)
ids = tokenizer.encode("Once upon a time")
tokenizer.decode(ids)
tokenizer.save("tokenizer.json")
tokenizer = bpe.load("tokenizer.json")
"""

from bpe.char import CharTokenizer
from bpe.errors import TokenizerError
from bpe.formats import from_dict, load
from bpe.patterns import PATTERNS
from bpe.reduced import ReducedTokenizer
from bpe.tokenizer import BPETokenizer, StreamDecoder, Tokenizer
from bpe.training import train

__all__ = [
    "PATTERNS",
    "BPETokenizer",
    "CharTokenizer",
    "ReducedTokenizer",
    "StreamDecoder",
    "Tokenizer",
    "TokenizerError",
    "from_dict",
    "load",
    "train",
]
