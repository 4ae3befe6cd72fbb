"""The tokenizer of llama2.c: a vocabulary of pieces with scores, which are merged by score."""

import heapq
import struct
from pathlib import Path

from retbench.data.vocabularies import Tokenizer, content_hash, read_bytes
from retbench.errors import ConfigError

_BOS, _EOS, _FIRST_BYTE = 1, 2, 3
"""Tokens of llama2.c."""
_NO_NEIGHBOUR = -1


def read_pieces(content: bytes) -> list[tuple[bytes, float]]:
    """Return piece and score of each token of llama2.c's format; ValueError if the content is not a whole file."""
    pieces, offset = list[tuple[bytes, float]](), 4
    while offset < len(content):
        try:
            score, length = struct.unpack_from("<fi", content, offset)
        except struct.error as error:
            raise ValueError(f"it ends within token {len(pieces)}") from error
        offset += 8 + length
        if length < 0 or offset > len(content):
            raise ValueError(f"it ends within token {len(pieces)}")
        pieces.append((content[offset - length : offset], score))
    if [piece for piece, _ in pieces[_FIRST_BYTE : _FIRST_BYTE + 256]] != [
        b"<0x%02X>" % byte for byte in range(256)
    ]:
        raise ValueError("tokens 3 to 258 are not the bytes <0x00> to <0xFF>")
    return pieces


class ScoredPieces(Tokenizer):
    """llama2.c's `tokenizer.bin`: a SentencePiece BPE vocabulary as pieces with scores, merged by score.

    The file is an int32 (the longest piece), then for each token a float32 score, an int32 length and the piece's
    bytes, little-endian (llama2.c, tokenizer.py `export` and run.c `build_tokenizer`). Encoding puts a space before a
    text and splits it into characters; a character without a piece becomes bytes (piece "<0x0A>" is token 3 + 10). Then
    it merges the two neighbours whose merged piece has the highest score, the leftmost first, until no merged piece
    exists (run.c `encode`).

    Raises:
        ConfigError: the file has another format.
    """

    bos_token_id = _BOS
    eos_token_id = _EOS

    def __init__(self, name: str, path: Path) -> None:
        content = read_bytes(path)
        try:
            entries = read_pieces(content)
        except ValueError as error:
            raise ConfigError(
                f"{path}: not a tokenizer of llama2.c: {error}. Fetch the file again."
            ) from error
        self.name = name
        self.fingerprint = content_hash(content)
        self.vocab_size = len(entries)
        self._pieces = [piece for piece, _ in entries]
        self._scores = [score for _, score in entries]
        self._token_of: dict[bytes, int] = {}
        for token, piece in enumerate(self._pieces):
            self._token_of.setdefault(piece, token)

    def _characters(self, text: str) -> list[int]:
        """Return the tokens of a text's characters, or of their bytes."""
        tokens = []
        for character in text:
            piece = character.encode()
            token = self._token_of.get(piece)
            tokens += [token] if token is not None else [_FIRST_BYTE + byte for byte in piece]
        return tokens

    def _encode(self, text: str) -> list[int]:
        """Return the tokens of a text in n log n steps."""
        if not text:
            return []
        tokens = self._characters(" " + text)
        after = [*range(1, len(tokens)), _NO_NEIGHBOUR]
        before = list(range(-1, len(tokens) - 1))
        merges: list[tuple[float, int, int, int, int]] = []

        def propose(left: int) -> None:
            right = after[left]
            merged = self._token_of.get(self._pieces[tokens[left]] + self._pieces[tokens[right]])
            if merged is not None:
                heapq.heappush(merges, (-self._scores[merged], left, tokens[left], tokens[right], merged))

        for left in range(len(tokens) - 1):
            propose(left)
        while merges:
            _, left, left_token, right_token, merged = heapq.heappop(merges)
            right = after[left]
            if right == _NO_NEIGHBOUR or (tokens[left], tokens[right]) != (left_token, right_token):
                continue  # one of the two has been merged with another neighbour in the meantime
            tokens[left], tokens[right] = merged, _NO_NEIGHBOUR
            after[left] = after[right]
            after[right] = _NO_NEIGHBOUR
            if after[left] != _NO_NEIGHBOUR:
                before[after[left]] = left
                propose(left)
            if before[left] != _NO_NEIGHBOUR:
                propose(before[left])
        return [token for token in tokens if token != _NO_NEIGHBOUR]

    def _decode(self, tokens: list[int]) -> str:
        content = b"".join(
            bytes([token - _FIRST_BYTE]) if 0 <= token - _FIRST_BYTE < 256 else self._pieces[token]
            for token in tokens
            if token not in (_BOS, _EOS)
        )
        return content.removeprefix(b" ").decode("utf-8", "replace")
