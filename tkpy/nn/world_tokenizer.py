"""The "World" tokenizer of RWKV-4 to RWKV-7: the longest known token first, over UTF-8 bytes.

There is no splitting at blanks, no merging and no token at the beginning. Every single byte is a token, so that any
bytes can be encoded, and decoding gives back exactly what was encoded. Id 0 ends a text and stands for no bytes.
"""

from __future__ import annotations

import ast
import importlib.util
import os
from collections.abc import Iterable
from pathlib import Path

END_OF_TEXT = 0
VOCABULARY = "rwkv_vocab_v20230424.txt"


class WorldTokenizer:
    """Text to ids and back.

    Args:
        vocabulary: a vocabulary file, or a checkpoint folder that holds one (`rwkv_vocab*.txt` with lines
            `id literal length`, or Hugging Face's `vocab.txt` with a literal a line). None takes the file that the
            package `rwkv` on PyPI brings along.

    Raises:
        FileNotFoundError: no vocabulary there.
        ValueError: a file that is not a vocabulary.
    """

    def __init__(self, vocabulary: str | os.PathLike[str] | None = None):
        self.tokens = _read(_find(vocabulary))
        self._ids = {token: i for i, token in self.tokens.items()}
        lengths: dict[bytes, set[int]] = {}
        for token in self._ids:
            if len(token) > 1:
                lengths.setdefault(token[:2], set()).add(len(token))
        # Which lengths to try where a text goes on with these two bytes, the longest first.
        self._lengths = {start: tuple(sorted(found, reverse=True)) for start, found in lengths.items()}

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return max(self.tokens) + 1

    def encode(self, text: str | bytes) -> list[int]:
        """The ids of a text (or of any bytes); the empty list for the empty text."""
        data = text.encode() if isinstance(text, str) else bytes(text)
        ids, lengths = self._ids, self._lengths
        result, position, end = [], 0, len(data)
        while position < end:
            for length in lengths.get(data[position : position + 2], ()):
                found = ids.get(data[position : position + length])
                if found is not None and position + length <= end:
                    break
            else:
                length, found = 1, ids[data[position : position + 1]]
            result.append(found)
            position += length
        return result

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of `ids`; ValueError for an id that stands for nothing."""
        tokens = self.tokens
        try:
            return b"".join(tokens[int(i)] for i in ids)
        except KeyError as error:
            raise ValueError(f"WorldTokenizer: id {error} is not in the vocabulary") from None

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`; bytes that are no UTF-8, such as half a character at the end, become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")


def _find(vocabulary: str | os.PathLike[str] | None) -> Path:
    if vocabulary is None:
        spec = importlib.util.find_spec("rwkv")
        if spec is None or spec.origin is None:
            raise FileNotFoundError(
                f"WorldTokenizer: needs a vocabulary file, or {VOCABULARY} from the package rwkv (pip install rwkv)"
            )
        return Path(spec.origin).parent / VOCABULARY
    path = Path(vocabulary)
    if not path.is_dir():
        return path
    candidates = [*sorted(path.glob("rwkv_vocab*.txt")), *path.glob("vocab.txt")]
    if not candidates:
        raise FileNotFoundError(f"WorldTokenizer: needs rwkv_vocab*.txt or vocab.txt in {path}")
    return candidates[0]


def _read(file: Path) -> dict[int, bytes]:
    tokens = {}
    try:
        for number, line in enumerate(file.read_text(encoding="utf-8").rstrip("\n").split("\n")):
            identity, token = _parse(line) if line[:1].isdigit() else (number, ast.literal_eval(line))
            tokens[identity] = token.encode() if isinstance(token, str) else bytes(token)
    except (ValueError, SyntaxError, TypeError) as error:
        raise ValueError(f"WorldTokenizer: {file} is not a vocabulary: {error}") from error
    tokens[END_OF_TEXT] = b""
    known = set(tokens.values())
    if not known.issuperset(bytes([i]) for i in range(256)):
        raise ValueError(f"WorldTokenizer: {file} is not a vocabulary: it must hold every single byte")
    return tokens


def _parse(line: str) -> tuple[int, str | bytes]:
    """`id literal length`; the literal may hold blanks."""
    first, last = line.index(" "), line.rindex(" ")
    token = ast.literal_eval(line[first:last].strip())
    if len(token.encode() if isinstance(token, str) else token) != int(line[last:]):
        raise ValueError(f"the token of {line!r} has another length")
    return int(line[:first]), token
