"""Tables of artifacts, read as what was written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from stages.artifacts.manifest import Artifact

if TYPE_CHECKING:
    import pandas as pd


def read_table(artifact: Artifact, name: str, *, texts: Sequence[str], numbers: Sequence[str]) -> pd.DataFrame:
    """A CSV file of an artifact.

    Args:
        texts, numbers: columns that it must have; empty cells of numbers are nan.

    Raises:
        LrlsError: it cannot be read, or a column is missing or of another type.
    """
    import pandas as pd

    try:
        empty = {column: ["", "nan"] for column in numbers}  # a structure may be called NA
        kinds = dict.fromkeys(texts, str)
        table = pd.read_csv(artifact.path(name), dtype=kinds, keep_default_na=False, na_values=empty)
        for column in texts:
            if not all(isinstance(text, str) and text.isprintable() for text in table[column]):
                raise TypeError
        for column in numbers:
            table[column] = pd.to_numeric(table[column])
    except (OSError, ValueError, TypeError, KeyError, pd.errors.ParserError):
        raise artifact.damaged(name) from None
    return table
