"""Two tokenizers written down as slowly and as plainly as they are defined; nothing of the package is used."""

import base64
import unicodedata
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")


def kind(character: str) -> str:
    if character.isspace():
        return "space"
    return {"L": "letter", "N": "number"}.get(unicodedata.category(character)[0], "other")


def gpt2_words(text: str) -> Iterator[str]:
    r"""Find `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+` by hand."""
    start = 0
    while start < len(text):
        end = start
        contraction = next((word for word in CONTRACTIONS if text.startswith(word, start)), None)
        first = start + (text[start] == " ")
        if contraction:
            end = start + len(contraction)
        elif first < len(text) and kind(text[first]) != "space":
            end = first
            while end < len(text) and kind(text[end]) == kind(text[first]):
                end += 1
        else:
            while end < len(text) and kind(text[end]) == "space":
                end += 1
            if end < len(text) and end - start > 1:
                end -= 1
        yield text[start:end]
        start = end


def read_tiktoken(path: Path) -> dict[bytes, int]:
    lines = path.read_text(encoding="ascii").splitlines()
    return {base64.b64decode(piece): int(rank) for piece, rank in (line.split() for line in lines)}


def gpt2_encode(text: str, ranks: dict[bytes, int]) -> list[int]:
    """Merge the pair of the lowest rank, the leftmost first, until none is in the vocabulary."""
    tokens: list[int] = []
    for word in gpt2_words(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while True:
            pairs = [left + right for left, right in pairwise(parts)]
            known = [pair for pair in pairs if pair in ranks]
            if not known:
                break
            place = pairs.index(min(known, key=ranks.__getitem__))
            parts[place : place + 2] = [pairs[place]]
        tokens += [ranks[part] for part in parts]
    return tokens


def llama2c_encode(text: str, pieces: list[tuple[bytes, float]]) -> list[int]:
    """`encode` of llama2.c's run.c, without begin and end: the best pair of all, one after the other."""
    ids = {piece: token for token, (piece, _) in reversed(list(enumerate(pieces)))}
    tokens = []
    for character in " " + text if text else "":
        piece = character.encode()
        tokens += [ids[piece]] if piece in ids else [3 + byte for byte in piece]
    while True:
        best, place = -1e10, -1
        for index in range(len(tokens) - 1):
            merged = ids.get(pieces[tokens[index]][0] + pieces[tokens[index + 1]][0])
            if merged is not None and pieces[merged][1] > best:
                best, place, token = pieces[merged][1], index, merged
        if place < 0:
            return tokens
        tokens[place : place + 2] = [token]
