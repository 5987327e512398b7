"""Texts to token ids, by the Rust `tokenizers` library; padding is the batcher's business, not done here."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from server.engine.errors import EmptyInput, InputTooLarge, InvalidInput


@dataclass(frozen=True, slots=True)
class Text:
    """One thing to classify: a text, or a pair of texts."""

    first: str
    second: str | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Token ids of one text, special tokens included; `type_ids` only where the model takes them."""

    ids: list[int]
    type_ids: list[int] | None = None

    def __len__(self) -> int:
        return len(self.ids)


class TextTokenizer:
    """The family's tokenizer with the family's limits."""

    def __init__(self, path: Path, *, max_tokens: int, pair: bool, type_ids: bool) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._max_tokens = max_tokens
        self._pair = pair
        self._type_ids = type_ids
        self._normalizer = self._tokenizer.normalizer
        pre_tokenizer = self._tokenizer.pre_tokenizer
        # BERT's pre-tokenizer drops every run of white space, so texts that differ only there share a key.
        self._folds_space = type(pre_tokenizer).__name__ == "BertPreTokenizer"

    def normalize(self, text: str) -> str:
        """The form that equal texts share: what the tokenizer itself makes of the characters."""
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
        else:
            text = unicodedata.normalize("NFC", text)
        return " ".join(text.split()) if self._folds_space else text

    def check(self, text: Text) -> None:
        """Refuse what the family cannot take. Raises EmptyInput or InvalidInput, naming the remedy."""
        if self._pair and text.second is None:
            raise InvalidInput('inputs: this family compares two texts; send a pair: ["first", "second"]')
        if not self._pair and text.second is not None:
            raise InvalidInput(
                "inputs: this family takes single texts and got a pair; "
                'to send several texts wrap each in a list of its own: [["one"], ["two"]]'
            )
        if not text.first.strip() or (text.second is not None and not text.second.strip()):
            raise EmptyInput("inputs: a text is empty; send at least one visible character")

    def encode(self, text: Text, *, truncate: bool) -> Tokens:
        """Token ids of a text. Raises InputTooLarge if it is longer than the model and `truncate` is off."""
        encoding = self._tokenizer.encode(text.first, text.second)
        if len(encoding) > self._max_tokens:
            if not truncate:
                raise InputTooLarge(
                    f"inputs: a text has {len(encoding)} tokens and the model reads {self._max_tokens}; "
                    'shorten it or send "truncate": true'
                )
            encoding = self._encode_truncated(text)
        return Tokens(encoding.ids, encoding.type_ids if self._type_ids else None)

    def _encode_truncated(self, text: Text):  # type: ignore[no-untyped-def]
        # Truncating is a setting of the tokenizer, not of the call; all calls are made on the loop's thread.
        self._tokenizer.enable_truncation(self._max_tokens)
        try:
            return self._tokenizer.encode(text.first, text.second)
        finally:
            self._tokenizer.no_truncation()
