"""What is reported about the data before a run, and which sequences are refused."""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plast_train.config import DataConfig
from plast_train.data.audit import audit, check_sequences
from plast_train.data.questions import Record, read_records
from plast_train.data.token_tree import Key, TokenSequence, build_tree
from plast_train.errors import UserError

IMAGE = 99
CONFIG = DataConfig(questions=["q.jsonl"], languages=["pt", "en"])
RECORDS = [
    Record("a", {"pt": "Que animal é?", "en": "Which animal?"}, "/i/1.png", None, "q.jsonl, line 1"),
    Record("b", {"pt": "Que animal?", "en": "Which animal?"}, "/i/1.png", None, "q.jsonl, line 2"),
    Record("c", {"pt": "Que animal?", "en": "Which animal?"}, "/i/2.png", None, "q.jsonl, line 3"),
    Record("d", {"pt": "Onde?", "en": "Where is it now?"}, None, None, "q.jsonl, line 4"),
]


def sequence(record: int, language: int, question: int, **fields: Any) -> TokenSequence:
    """Two leading tokens, four for an image where there is one, the question, two labels."""
    image = RECORDS[record].image
    tokens = (1, 2, *([IMAGE] * 4 if image else []), *range(10, 10 + question), 7, 8)
    start = len(tokens) - 2 - question
    defaults: dict[str, Any] = {"tokens": tokens, "labels": 2, "image": image}
    where = (start, start + question)
    return TokenSequence.of(Key(record, language), question=where, **{**defaults, **fields})


def sequences() -> Iterator[TokenSequence]:
    for record, (portuguese, english) in enumerate([(6, 2), (4, 2), (4, 2), (6, 8)]):
        yield sequence(record, 0, portuguese)
        yield sequence(record, 1, english)


def check(changed: TokenSequence | None = None, fraction: float = 0.0, **limits: Any) -> list[int]:
    of_all = (changed if changed and s.key == changed.key else s for s in sequences())
    groups = [list(group) for _, group in itertools.groupby(of_all, lambda s: s.key.record)]
    defaults = {"tokens_per_row": 20, "max_positions": 20, "image_token_id": IMAGE, "image_tokens": 4}
    return check_sequences(
        groups,
        RECORDS,
        CONFIG.model_copy(update={"max_bad_fraction": fraction}),
        section="train",
        **{**defaults, **limits},
    )


def test_counts_of_records_and_tokens() -> None:
    found = audit(RECORDS, CONFIG, sequences())
    assert (found.records, found.with_image, found.images) == (4, 3, 2)
    assert (found.repeated_questions, found.repeated_records) == (2, 1)
    assert list(found.tokens) == ["pt", "en"]
    portuguese, english = found.tokens["pt"], found.tokens["en"]
    assert (portuguese.mean, portuguese.longest) == (5.0, 6)
    assert portuguese.per_english_word == 20 / 10  # tokens over the 2 + 2 + 2 + 4 English words
    assert portuguese.relative_to_english == 20 / 14
    assert (english.per_english_word, english.relative_to_english) == (1.4, 1.0)
    assert found.longest_sequence == 14
    assert found.longest_where == "q.jsonl, line 1, id 'a' in 'pt'"
    # Without the last record's Portuguese: tokens, words and English tokens of the first three.
    portuguese = audit(RECORDS, CONFIG, (s for s in sequences() if s.key != Key(3, 0))).tokens["pt"]
    assert (portuguese.per_english_word, portuguese.relative_to_english) == (14 / 6, 14 / 6)
    assert json.loads(json.dumps(found.as_dict()))["tokens"]["pt"]["longest"] == 6
    text = "\n".join(found.lines())
    assert "4 records in 2 languages, 3 of them about 2 images" in text and "pt Portuguese" in text


def test_without_a_tokenizer_nothing_is_said_of_tokens() -> None:
    found = audit(RECORDS, CONFIG)
    assert found.tokens == {} and found.longest_sequence is None
    assert len(found.lines()) == 1


def test_sound_sequences_are_all_kept_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    assert check(tokens_per_row=14, max_positions=14) == [0, 1, 2, 3]
    assert not caplog.records


@pytest.mark.parametrize(
    ("changed", "limits", "told"),
    [
        (
            None,
            {"tokens_per_row": 13},
            "14 tokens do not fit a row; shorten it or set train.tokens_per_row=14",
        ),
        (None, {"max_positions": 13}, "14 tokens, but the model has 13 positions"),
        (sequence(0, 0, 6, labels=0), {}, "no token to train on"),
        (sequence(0, 0, 6, image=None), {}, "4 image tokens where the vision tower makes 0"),
        (
            sequence(0, 0, 6, tokens=(1, *[IMAGE] * 5, 10)),
            {},
            "5 image tokens where the vision tower makes 4",
        ),
    ],
)
def test_what_cannot_run_is_named(
    changed: TokenSequence | None,
    limits: dict[str, int],
    told: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(UserError) as caught:
        check(changed, **limits)
    assert f"q.jsonl, line 1, id 'a': in 'pt': {told}" in str(caught.value)
    assert "1 of 4 records" in str(caught.value)
    with caplog.at_level(logging.WARNING):
        assert check(changed, fraction=0.25, **limits) == [1, 2, 3]
    assert told in caplog.text


def test_a_tower_of_another_size_refuses_every_image() -> None:
    with pytest.raises(UserError, match="3 of 4 records"):
        check(image_tokens=9, fraction=0.5)


def test_probing_needs_no_labels_but_a_row_for_all_languages(caplog: pytest.LogCaptureFixture) -> None:
    probing = [[sequence(n, k, 3 + k + n, labels=0) for k in range(2)] for n in range(2)]
    limits: dict[str, Any] = {"section": "probe", "max_positions": 20, "image_token_id": IMAGE}
    limits |= {"image_tokens": 4}
    longest = build_tree(probing[1]).tokens
    assert check_sequences(probing, RECORDS[:2], CONFIG, tokens_per_row=longest, **limits) == [0, 1]
    with pytest.raises(UserError, match=rf"id 'b': {longest} tokens in all languages.*_per_row={longest}"):
        check_sequences(probing, RECORDS[:2], CONFIG, tokens_per_row=longest - 1, **limits)
    some = CONFIG.model_copy(update={"max_bad_fraction": 0.5})
    assert check_sequences(probing, RECORDS[:2], some, tokens_per_row=longest - 1, **limits) == [0]
    assert "id 'b'" in caplog.text and "id 'a'" not in caplog.text


def test_real_questions_with_a_real_tokenizer(shared: Path) -> None:
    """Question tokens as counted equal the tokenizer's own, up to the one that joins the text before it."""
    from plast_train.lvlm.families import LLAVA_CHAT
    from plast_train.lvlm.prompts import Prompter
    from plast_train.tiny.tokenizer import load_tokenizer

    config = DataConfig(
        questions=[str(shared / "data" / "xgqa.jsonl")],
        languages=["en", "de", "pt", "ru", "zh", "ko", "bn", "id"],
    )
    records = read_records(config)[:50]
    tokenizer = load_tokenizer(shared / "data" / "tokenizer")
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    assert isinstance(image_token, int)
    prompter = Prompter(tokenizer, LLAVA_CHAT, image_token, 36, tuple(config.languages))
    groups = list(prompter.probes(records, range(len(records))))
    made = [sequence for group in groups for sequence in group]
    found = audit(records, config, made)
    for code in config.languages:
        own = [len(tokenizer(r.questions[code], add_special_tokens=False)["input_ids"]) for r in records]
        assert abs(found.tokens[code].mean - sum(own) / len(own)) <= 1
        assert abs(found.tokens[code].longest - max(own)) <= 1
    assert found.tokens["bn"].relative_to_english > 3 > found.tokens["de"].relative_to_english > 1
    assert found.longest_sequence == max(len(s.tokens) for s in made)
    kept = check_sequences(
        groups,
        records,
        config,
        section="probe",
        tokens_per_row=1024 * 8,
        max_positions=2048,
        image_token_id=prompter.image_token,
        image_tokens=36,
    )
    assert kept == list(range(50))
