"""The tokenizer a config asks for: its tokens are where they should be, and it can pad."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.models import make_config, tiny_tokenizer

from whet.core.errors import ModelError
from whet.model.tokenizer import highest_id, load_tokenizer, with_template


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_tokenizer().save_pretrained(tmp_path)
    return tmp_path


def load(folder: Path, **options: Any) -> Any:
    return load_tokenizer(make_config(folder, tokenizer=options))


def test_special_tokens_take_their_roles_and_the_others_stay(folder: Path) -> None:
    tokenizer = load(
        folder,
        special_tokens={"eos_token": "<|im_end|>", "bos_token": "<s>", "additional_special_tokens": ["<tool>"]},
    )
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 4)
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<s>", 261)
    assert tokenizer("<|im_start|><tool><|im_end|>").input_ids == [3, 262, 4]
    assert {"<tool>", "<|im_start|>"} <= set(tokenizer.all_special_tokens)


def test_added_tokens_are_one_id_and_are_not_special(folder: Path) -> None:
    tokenizer = load(folder, tokens=("<think>",))
    (index,) = tokenizer("<think>").input_ids
    assert index == highest_id(tokenizer) == 261
    assert tokenizer.decode([index], skip_special_tokens=True) == "<think>"


def test_new_tokens_are_announced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="whet")
    load(folder, tokens=("<think>", "<|im_end|>"))
    assert "tokenizer: '<think>' is new to the vocabulary" in caplog.text


def test_reserved_tokens_get_new_texts_and_keep_their_ids(folder: Path) -> None:
    tokenizer = load(folder, added_tokens_overrides={3: "<tool>", 4: "</tool>"})
    assert tokenizer("<tool></tool>").input_ids == [3, 4]
    assert tokenizer.convert_ids_to_tokens([3, 4]) == ["<tool>", "</tool>"]
    assert "<|im_start|>" not in tokenizer.get_vocab()
    assert len(tokenizer) == 261


def test_overrides_touch_reserved_tokens_only(folder: Path) -> None:
    with pytest.raises(ModelError) as caught:
        load(folder, added_tokens_overrides={100: "<tool>", 3: "<|eos|>"})
    assert [str(problem) for problem in caught.value.problems] == [
        f"my.yaml: added_tokens_overrides: 100 is {tiny_tokenizer().convert_ids_to_tokens(100)!r}, not an added token"
        " -> use reserved ids, such as 0, 1, 2, 3, 4",
        "my.yaml: added_tokens_overrides: '<|eos|>' is already token 1 -> choose another text",
    ]


def without_pad_token(folder: Path, *, keep_its_text: bool) -> Path:
    """Take the role of padding from the saved tokenizer; and the text that gives it away."""
    for file in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((folder / file).read_text())
        content.pop("pad_token", None)
        text = json.dumps(content)
        (folder / file).write_text(text if keep_its_text else text.replace("<|pad|>", "<|third|>"))
    return folder


def test_the_pad_token_of_the_tokenizer_is_kept(folder: Path) -> None:
    assert load(folder).pad_token == "<|pad|>"


def test_a_token_made_for_padding_is_taken(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="whet")
    assert load(without_pad_token(folder, keep_its_text=True)).pad_token == "<|pad|>"
    assert "tokenizer: no pad token; '<|pad|>' fills short rows" in caplog.text


def test_without_one_the_end_of_text_pads(folder: Path) -> None:
    assert load(without_pad_token(folder, keep_its_text=False)).pad_token == "<|eos|>"


def test_the_pad_token_that_is_written_wins(folder: Path) -> None:
    written = {"pad_token": "<|im_end|>"}
    assert load(without_pad_token(folder, keep_its_text=True), special_tokens=written).pad_token_id == 4


def test_no_token_that_could_pad_is_an_error(tmp_path: Path) -> None:
    tiny_tokenizer(eos_token=None).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no pad token, and none that could stand for one"):
        load(without_pad_token(tmp_path, keep_its_text=False))


def test_slow_tokenizers_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="asks for a slow tokenizer, and transformers 5 has only fast ones"):
        load(folder, tokenizer_use_fast=False)


def test_unknown_tokenizer_classes_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match="has no 'LlamaTokeniser' -> leave the key out, or did you mean"):
        load(folder, tokenizer_type="LlamaTokeniser")
    assert load(folder, tokenizer_type="PreTrainedTokenizerFast").is_fast


def test_the_template_is_saved_with_the_tokenizer(folder: Path, tmp_path: Path) -> None:
    with_template(load(folder), "{{ messages }}").save_pretrained(tmp_path / "saved")
    assert load(tmp_path / "saved").chat_template == "{{ messages }}"
