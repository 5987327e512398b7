"""Texts to token ids, by the Rust `tokenizers` library; padding is the batcher's business, not done here."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tokenizers import Encoding, Tokenizer

from server.engine.errors import EmptyInput, InputTooLarge, InvalidInput

# The library would share even one text out to threads of its own, whose CPU time nobody could attribute.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

Truncation = Literal["left", "right"]
"""The end at which a text that is too long loses tokens."""


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
    """The family's tokenizer with the family's limits. Does not change once made, so threads may share it."""

    def __init__(self, path: Path, *, max_tokens: int, pair: bool, type_ids: bool) -> None:
        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        # A client that writes "[SEP]" means these five characters; it must not split its text in two. This also
        # makes the tokens a function of the normalized text, which `normalize` relies on.
        self._tokenizer.encode_special_tokens = True
        self._max_tokens = max_tokens
        self._pair = pair
        self._type_ids = type_ids
        self._normalizer = self._tokenizer.normalizer
        # BERT's pre-tokenizer drops every run of white space, so texts that differ only there share a key; its
        # normalizer has removed the control characters that Python counts as white space and Rust does not.
        self._folds_space = type(self._tokenizer.pre_tokenizer).__name__ == "BertPreTokenizer" and bool(
            getattr(self._normalizer, "clean_text", False)
        )
        self._plain_ascii = self._folds_space and bool(getattr(self._normalizer, "lowercase", False))

    def normalize(self, text: str) -> str:
        """A form that only texts of equal tokens share: what the tokenizer itself makes of the characters.

        Raises UnicodeEncodeError for a text with a lone surrogate.
        """
        if self._plain_ascii and text.isascii() and text.isprintable():
            return " ".join(text.lower().split())  # the same, a tenth of the cost: there is no more to normalize
        if self._normalizer is not None:
            text = self._normalizer.normalize_str(text)
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
        if _blank(text.first) or (text.second is not None and _blank(text.second)):
            raise EmptyInput("inputs: a text is empty; send at least one visible character")

    def encode(self, text: Text, *, truncate: Truncation | None) -> Tokens:
        """Token ids of a text, cut at that end if it is too long.

        Raises InputTooLarge if it is longer than the model reads and `truncate` is None, and EmptyInput if nothing of
        it is left.
        """
        return self._tokens(self._tokenizer.encode(text.first, text.second), text, truncate)

    def encode_apart(self, text: Text, truncate: Truncation | None) -> tuple[Tokens, int]:
        """What `encode` gives, and the CPU nanoseconds it took; for a thread of its own, beside which the interpreter
        goes on (only the library's calls for batches let go of it)."""
        before_ns = time.thread_time_ns()
        whole = text.first if text.second is None else (text.first, text.second)
        (encoding,) = self._tokenizer.encode_batch_fast([whole])
        return self._tokens(encoding, text, truncate), time.thread_time_ns() - before_ns

    def _tokens(self, encoding: Encoding, text: Text, truncate: Truncation | None) -> Tokens:
        ids = encoding.ids
        if len(ids) > self._max_tokens:
            if truncate is None:
                raise InputTooLarge(
                    f"inputs: a text has {len(ids)} tokens and the model reads {self._max_tokens}; "
                    'shorten it or send "truncate": true'
                )
            encoding = self._truncated(text, truncate)
            ids = encoding.ids
        if not ids:
            raise EmptyInput("inputs: the model can read nothing of a text; send at least one visible character")
        return Tokens(ids, encoding.type_ids if self._type_ids else None)

    def _truncated(self, text: Text, side: Truncation) -> Encoding:
        """The text without what is too long. By hand, as the library's truncation is a setting of the tokenizer, which
        two threads share."""
        parts = [text.first] if text.second is None else [text.first, text.second]
        encodings = self._tokenizer.encode_batch_fast(parts, add_special_tokens=False)
        room = self._max_tokens - self._tokenizer.num_special_tokens_to_add(len(parts) == 2)
        for encoding, length in zip(encodings, _shares(room, [len(one.ids) for one in encodings]), strict=True):
            encoding.truncate(length, direction=side)
        return self._tokenizer.post_process(encodings[0], encodings[1] if len(encodings) == 2 else None)


def _shares(room: int, lengths: list[int]) -> list[int]:
    """How many tokens each of one or two texts keeps: the longer one is cut first, down to the shorter."""
    if len(lengths) == 1:
        return [min(room, lengths[0])]
    shorter = min(*lengths, room // 2)
    longer = min(max(lengths), room - shorter)
    return [longer, shorter] if lengths[0] > lengths[1] else [shorter, longer]


def _blank(text: str) -> bool:
    return not text or text.isspace()
