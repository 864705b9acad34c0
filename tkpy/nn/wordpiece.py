"""BERT's WordPiece tokens, by the `tokenizers` package from the files in a checkpoint folder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch


class WordPiece:
    """Texts to token ids, special tokens included. `tokenizer` is a `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer

    @classmethod
    def find(cls, folder: str | os.PathLike[str]) -> WordPiece | None:
        """The tokenizer of `folder` (or of a weight file's folder): its tokenizer.json, else its vocab.txt (uncased,
        as bert-base-uncased); None if there is neither."""
        path = Path(folder) if Path(folder).is_dir() else Path(folder).parent
        from tokenizers import BertWordPieceTokenizer, Tokenizer

        if (path / "tokenizer.json").is_file():
            return cls(Tokenizer.from_file(str(path / "tokenizer.json")))
        if (path / "vocab.txt").is_file():
            return cls(BertWordPieceTokenizer(str(path / "vocab.txt"), lowercase=True)._tokenizer)
        return None

    def encode(self, texts: Sequence[str], max_length: int) -> list[list[int]]:
        """The ids of each text, cut to `max_length` tokens, not padded."""
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(max_length)
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(texts))]

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write tokenizer.json."""
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.tokenizer.save(str(Path(folder) / "tokenizer.json"))


def to_token_ids(
    caller: str, texts: Any, tokenizer: WordPiece | None, max_length: int, vocab_size: int
) -> list[list[int]]:
    """Strings (one or many), sequences of token ids or an (N, L) tensor as lists of at most `max_length` token ids.

    Raises:
        ValueError: named after `caller`: strings without a tokenizer, empty sequences, ids outside of the vocabulary.
    """
    if isinstance(texts, torch.Tensor):
        texts = texts.tolist()
    texts = [texts] if isinstance(texts, str) else list(texts)
    if texts and all(isinstance(t, str) for t in texts):
        if tokenizer is None:
            raise ValueError(
                f"{caller}: texts need a tokenizer: put tokenizer.json or vocab.txt (of bert-base-uncased, for the "
                "released models) into the checkpoint folder, or pass token ids"
            )
        return tokenizer.encode(texts, max_length)
    if not all(isinstance(t, Sequence) and t and all(isinstance(i, int) for i in t) for t in texts):
        raise ValueError(f"{caller}: needs strings, or non-empty sequences of token ids, got {str(texts)[:80]}")
    if not all(min(t) >= 0 and max(t) < vocab_size for t in texts):
        raise ValueError(f"{caller}: token ids must lie in 0..{vocab_size - 1}, got {str(texts)[:80]}")
    return [list(t)[:max_length] for t in texts]
