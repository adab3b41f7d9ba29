"""Fingerprints of tensors that are held in parts, on any number of ranks."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
#: Long tensors are looked at in pieces of so many bytes, which fit a processor's cache.
PIECE_BYTES = 1 << 24


@dataclass(frozen=True)
class Fingerprint:
    """Of the bits of a flat tensor: the sum of its 64-bit words, and their sum weighted by position, modulo 2^64.

    Fingerprints of the parts of a tensor add up to that of the whole, however it was cut. It tells any change of one
    word, any exchange of two, and all but 2^-64 of the others that happen by accident; it is no protection against
    forgery.
    """

    total: int = 0
    weighted: int = 0

    def __add__(self, other: "Fingerprint") -> "Fingerprint":
        return Fingerprint((self.total + other.total) & _MASK, (self.weighted + other.weighted) & _MASK)

    def __str__(self) -> str:
        return f"{self.total:016x}{self.weighted:016x}"

    @classmethod
    def parse(cls, text: str) -> "Fingerprint":
        return cls(int(text[:16], 16), int(text[16:], 16))


def fingerprint(part: Tensor, start: int = 0) -> Fingerprint:
    """The fingerprint of ``part``, the elements ``start`` and on of a flat tensor; on the tensor's own device."""
    found = Fingerprint()
    for piece, offset in pieces(part):
        found += _of_piece(piece, start + offset)
    return found


def pieces(part: Tensor) -> Iterator[tuple[Tensor, int]]:
    """``part``, flat, in pieces of `PIECE_BYTES`, each with its offset in elements."""
    flat = part.detach().reshape(-1)
    length = PIECE_BYTES // flat.element_size()
    for offset in range(0, len(flat), length):
        yield flat[offset : offset + length], offset


def _of_piece(piece: Tensor, start: int) -> Fingerprint:
    size = piece.element_size()
    in_word = 8 // size
    lead = min(-start % in_word, len(piece))  # elements before the first whole word
    whole = (len(piece) - lead) // in_word
    body = piece[lead : lead + whole * in_word]
    if body.storage_offset() % in_word or body.data_ptr() % 8:
        body = body.clone()
    words = body.view(torch.int64)
    first = (start + lead) // in_word
    found = _of_words(words, first)
    for index in (*range(lead), *range(lead + whole * in_word, len(piece))):
        bits = int.from_bytes(bytes(piece[index : index + 1].cpu().view(torch.uint8).tolist()), "little")
        word = bits << (8 * size * ((start + index) % in_word))
        found += Fingerprint(word & _MASK, word * ((start + index) // in_word) & _MASK)
    return found


def _of_words(words: Tensor, first: int, columns: int = 4096) -> Fingerprint:
    """Sums of rows and columns, which are fast, make up the weighted sum: the word at row r, column c has the position
    ``first + r * columns + c``."""
    rows = len(words) // columns
    table, rest = words[: rows * columns].view(rows, columns), words[rows * columns :]
    by_row, by_column = table.sum(1), table.sum(0)
    numbers = torch.arange(max(rows, columns), device=words.device)
    total = int(by_row.sum()) + int(rest.sum())
    weighted = (
        columns * int((numbers[:rows] * by_row).sum())
        + int((numbers[:columns] * by_column).sum())
        + int((numbers[: len(rest)] * rest).sum())
        + rows * columns * int(rest.sum())
    )
    return Fingerprint(total & _MASK, (weighted + first * total) & _MASK)
