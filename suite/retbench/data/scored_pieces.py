"""llama2.c's `tokenizer.bin`: a SentencePiece BPE vocabulary as pieces with scores, and the merging by them.

The file is an int32 (the longest piece), then for each token a float32 score, an int32 length and the piece's bytes,
little-endian (llama2.c, tokenizer.py `export` and run.c `build_tokenizer`). A text gets a space before it, is taken
apart into characters, those without a piece into bytes (piece "<0x0A>" is token 3 + 10), and then the two neighbours
whose merged piece has the highest score are merged, the leftmost first, until none can be (run.c `encode`).
"""

import heapq
import struct
from collections.abc import Sequence
from pathlib import Path

from retbench.data.vocabularies import check_tokens, content_hash, read_bytes
from retbench.errors import ConfigError

_BOS, _EOS, _FIRST_BYTE = 1, 2, 3
_NO_NEIGHBOUR = -1


def read_pieces(content: bytes) -> list[tuple[bytes, float]]:
    """Piece and score of each token; ValueError where the content is not a whole file of that format."""
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
    if len(pieces) < _FIRST_BYTE + 256 or pieces[_FIRST_BYTE][0] != b"<0x00>":
        raise ValueError("tokens 3 to 258 are not the bytes <0x00> to <0xFF>")
    return pieces


class ScoredPieces:
    """The tokenizer of a `tokenizer.bin`; begin and end of a text are tokens 1 and 2, as in llama2.c.

    Raises:
        ConfigError: the file is not of that format.
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
        """The tokens of a text's characters, or of their bytes."""
        tokens = []
        for character in text:
            piece = character.encode("utf-8", "surrogatepass")
            token = self._token_of.get(piece)
            tokens += [token] if token is not None else [_FIRST_BYTE + byte for byte in piece]
        return tokens

    def encode(self, text: str) -> list[int]:
        """The tokens of a text; none is added but the space before it. Takes n log n steps."""
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
                continue  # one of the two has been merged with another neighbour since
            tokens[left], tokens[right] = merged, _NO_NEIGHBOUR
            after[left] = after[right]
            after[right] = _NO_NEIGHBOUR
            if after[left] != _NO_NEIGHBOUR:
                before[after[left]] = left
                propose(left)
            if before[left] != _NO_NEIGHBOUR:
                propose(before[left])
        return [token for token in tokens if token != _NO_NEIGHBOUR]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens, without the space before it; those for begin and end have none."""
        content = b"".join(
            bytes([token - _FIRST_BYTE]) if 0 <= token - _FIRST_BYTE < 256 else self._pieces[token]
            for token in check_tokens(tokens, self.vocab_size, self.name)
            if token not in (_BOS, _EOS)
        )
        return content.removeprefix(b" ").decode("utf-8", "replace")
