"""Which texts cannot hold a phrase, told from 128 bytes a text: so a search reads few of a million texts.

Each text is marked with 1,024 bits (`KIND`): one for every run of four bytes in it, by hash. A text that holds a phrase
has all of the phrase's marks. The reverse is not so, so what is left is read; a phrase under four bytes leaves all.
What is found is what `contains` finds.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

_GRAM, _WORDS, _BATCH = 4, 16, 2048
_BITS = 64 * _WORDS
_NAMES = [f"m{i}" for i in range(_WORDS)]
KIND = f"STRUCT({', '.join(f'{name} UBIGINT' for name in _NAMES)})"
"""The column of marks, as DuckDB calls it: it reads only those fields that a condition names."""


def lowered(texts: pa.ChunkedArray) -> pa.LargeStringArray:
    """Texts, and phrases to be looked for, in lower case."""
    return pc.utf8_lower(texts.cast(pa.large_string())).combine_chunks()


def marks(texts: pa.LargeStringArray) -> pa.StructArray:
    """The marks of lowered texts, as a column of `KIND`."""
    words = np.concatenate([_marked(texts[i : i + _BATCH]) for i in range(0, max(1, len(texts)), _BATCH)])
    return pa.StructArray.from_arrays([pa.array(words[:, i]) for i in range(_WORDS)], _NAMES)


def _marked(texts: pa.LargeStringArray) -> np.ndarray:
    """(len(texts), 16) words of 64 bits."""
    ends = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
    size = int(ends[-1] - ends[0])
    bits = np.zeros((len(texts), _BITS), np.uint8)
    if size:
        data = np.zeros(size + 2 * _GRAM, np.uint8)
        data[:size] = np.frombuffer(texts.buffers()[2], np.uint8)[ends[0] : ends[-1]]
        hashed = np.empty(-(-size // _GRAM) * _GRAM, np.uint32)
        for first in range(_GRAM):
            hashed[first::_GRAM] = np.frombuffer(data, "<u4", len(hashed) // _GRAM, first)
        # The upper bits of a product depend on all bytes of a gram, and those below on some only.
        place = ((hashed[:size] * np.uint32(0x9E3779B1)) >> np.uint32(22)).astype(np.int64)
        place += np.repeat(np.arange(len(texts)) * _BITS, np.diff(ends))
        last = ends[1:, None] - np.arange(1, _GRAM)  # from here on a gram would reach into the next text
        whole = np.ones(size, bool)
        whole[last[last >= ends[:-1, None]] - ends[0]] = False
        bits.reshape(-1)[place[whole]] = 1
    return np.packbits(bits, axis=1, bitorder="little").view("<u8")


def condition(phrase: str) -> tuple[str, str]:
    """A condition over the columns `lowered` and `marks` that holds for texts with this phrase, capitals or not, and
    its one parameter."""
    phrase = lowered(pa.chunked_array([[phrase]]))[0].as_py()
    data = phrase.encode()
    grams = [data[i : i + _GRAM] for i in range(len(data) - _GRAM + 1)]
    places = {(int.from_bytes(gram, "little") * 0x9E3779B1 & 0xFFFFFFFF) >> 22 for gram in grams}
    words = [sum(1 << place % 64 for place in places if place // 64 == i) for i in range(_WORDS)]
    tests = " AND ".join(f"marks.m{i} & {word} = {word}" for i, word in enumerate(words) if word)
    # As a CASE, since of several conditions DuckDB looks at the texts first.
    return f"CASE WHEN {tests or 'true'} THEN contains(lowered, ?) ELSE false END", phrase
