"""Texts become the tokens that the model was compiled for, or an error that says what to do."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from server.engine.errors import EmptyInput, InputTooLarge, InvalidInput
from server.engine.tokenizer import Text, TextTokenizer, Truncation

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "b", "c", "d", "e", "f", "sep", "[", "]", "é"]
ID = {word: index for index, word in enumerate(WORDS)}


def write(path: Path, *, bert: bool = True) -> Path:
    tokenizer = Tokenizer(models.WordLevel(ID, unk_token="[UNK]"))
    if bert:
        tokenizer.normalizer = normalizers.BertNormalizer()
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", ID["[CLS]"]), ("[SEP]", ID["[SEP]"])],
    )
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=10)
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def bert_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bert") / "tokenizer.json")


@pytest.fixture(scope="module")
def bert(bert_file: Path) -> TextTokenizer:
    return TextTokenizer(bert_file, max_tokens=6, pair=False, type_ids=False)


@pytest.fixture(scope="module")
def pairs(bert_file: Path) -> TextTokenizer:
    return TextTokenizer(bert_file, max_tokens=7, pair=True, type_ids=True)


def words(tokenizer: TextTokenizer, text: str, truncate: Truncation | None = None) -> str:
    return " ".join(WORDS[index] for index in tokenizer.encode(Text(text), truncate=truncate).ids)


def test_a_text_gets_its_special_tokens_and_no_padding_whatever_the_file_says(bert: TextTokenizer) -> None:
    assert words(bert, "a b c d") == "[CLS] a b c d [SEP]"


def test_a_text_that_is_too_long_is_refused_with_its_length_and_the_limit(bert: TextTokenizer) -> None:
    with pytest.raises(InputTooLarge, match=r"7 tokens .* reads 6; .*truncate"):
        bert.encode(Text("a b c d e"), truncate=None)


@pytest.mark.parametrize(("side", "kept"), [("right", "a b c d"), ("left", "c d e f")])
def test_a_text_is_cut_at_the_end_that_was_asked_for(bert: TextTokenizer, side: Truncation, kept: str) -> None:
    assert words(bert, "a b c d e f", side) == f"[CLS] {kept} [SEP]"


def test_cutting_one_text_does_not_cut_the_next(bert: TextTokenizer) -> None:
    bert.encode(Text("a b c d e f"), truncate="left")
    with pytest.raises(InputTooLarge):
        bert.encode(Text("a b c d e f"), truncate=None)


def test_a_pair_carries_type_ids_and_is_cut_at_its_longer_half(pairs: TextTokenizer) -> None:
    tokens = pairs.encode(Text("a b c d e", "f"), truncate="right")
    assert [WORDS[index] for index in tokens.ids] == ["[CLS]", "a", "b", "c", "[SEP]", "f", "[SEP]"]
    assert tokens.type_ids == [0, 0, 0, 0, 0, 1, 1]


def test_type_ids_are_left_out_where_the_model_takes_none(bert: TextTokenizer) -> None:
    assert bert.encode(Text("a"), truncate=None).type_ids is None


def test_a_family_of_single_texts_refuses_a_pair_and_says_how_to_send_two_texts(bert: TextTokenizer) -> None:
    with pytest.raises(InvalidInput, match=r'\[\["one"\], \["two"\]\]'):
        bert.check(Text("a", "b"))


def test_a_family_of_pairs_refuses_a_single_text(pairs: TextTokenizer) -> None:
    with pytest.raises(InvalidInput, match="send a pair"):
        pairs.check(Text("a"))


@pytest.mark.parametrize("blank", ["", " ", "\n\t ", "\u2003"])
def test_a_text_without_a_visible_character_is_refused(bert: TextTokenizer, pairs: TextTokenizer, blank: str) -> None:
    for tokenizer, text in ((bert, Text(blank)), (pairs, Text("a", blank)), (pairs, Text(blank, "a"))):
        with pytest.raises(EmptyInput):
            tokenizer.check(text)


def test_what_a_client_writes_is_never_read_as_a_special_token(bert: TextTokenizer) -> None:
    assert words(bert, "a[SEP]", "right") == "[CLS] a [ sep ] [SEP]"


def test_texts_that_differ_only_in_case_accents_or_white_space_share_a_form(bert: TextTokenizer) -> None:
    assert bert.normalize(" A \n  B\t") == bert.normalize("a b") == bert.normalize("\u00e1 b")


@given(st.text(st.characters(max_codepoint=127)))
def test_the_short_way_for_plain_ascii_gives_what_the_normalizer_gives(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = TextTokenizer(write(Path(folder) / "t.json"), max_tokens=8, pair=False, type_ids=False)
    assert tokenizer.normalize(text) == " ".join(normalizers.BertNormalizer().normalize_str(text).split())


def test_without_a_normalizer_every_difference_counts(tmp_path: Path) -> None:
    plain = TextTokenizer(write(tmp_path / "t.json", bert=False), max_tokens=6, pair=False, type_ids=False)
    assert len({plain.normalize(text) for text in ("a b", "a  b", "A b", "\u00e9", "e\u0301")}) == 5


def test_a_lone_surrogate_is_noticed(bert: TextTokenizer) -> None:
    with pytest.raises(UnicodeEncodeError):
        bert.normalize("\ud800")


# Characters that normalizers treat in their own ways: controls, all kinds of space, accents, CJK, special tokens.
awkward = st.text(
    st.one_of(
        st.sampled_from("abAB \t\n\r\x00\x0b\x1c\x1f\x85\xa0\u2028\u2003\u200b\ufeff\u0301éÉ中İß[]"),
        st.characters(exclude_categories=["Cs"]),
    )
) | st.sampled_from(["[SEP]", "[sep]", "[S\x00EP]", "[CLS] a", "[PAD]"])


def changes(text: str) -> list[str]:
    """Variations of a text that might fall together with it."""
    swapped = text.swapcase()
    return [f" {text} ", text.replace(" ", "\n"), text.replace("a", "a\x00"), swapped, text.replace("e", "é")]


@given(awkward, st.data())
def test_texts_of_one_form_have_the_same_tokens(bert_file: Path, text: str, data: st.DataObject) -> None:
    tokenizer = TextTokenizer(bert_file, max_tokens=10_000, pair=False, type_ids=False)
    other = data.draw(st.sampled_from(changes(text)) | awkward)
    encode: Callable[[str], list[int]] = lambda one: tokenizer.encode(Text(one), truncate=None).ids  # noqa: E731
    if tokenizer.normalize(text) == tokenizer.normalize(other):
        assert encode(text) == encode(other)


def test_a_text_of_which_nothing_is_left_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bare.json"
    bare = Tokenizer(models.WordLevel(ID, unk_token="[UNK]"))
    bare.normalizer = normalizers.BertNormalizer()
    bare.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    bare.save(str(path))
    tokenizer = TextTokenizer(path, max_tokens=6, pair=False, type_ids=False)
    with pytest.raises(EmptyInput):
        tokenizer.encode(Text("\x00"), truncate=None)
