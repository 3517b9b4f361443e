"""Formats of the user's own: functions in files and modules, what they give, and what they may do wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.configs import config_with
from tests.tiny_tokenizers import tiny_tokenizer

from whet.config import make_config
from whet.config.resolve import resolve
from whet.core.errors import ConfigError, RowError, RowLeftOut
from whet.core.types import (
    Conversation,
    Document,
    Hardware,
    Preference,
    PreferenceText,
    Prompt,
    Segment,
    Several,
    Stepwise,
    Tokens,
    Unpaired,
    UnpairedText,
)
from whet.data.formats import format_identity, make_format
from whet.data.formats.base import Format
from whet.data.prepare import prepare
from whet.data.recorder import Reads

Q, A, B = ({"role": role, "content": text} for role, text in (("user", "Q"), ("assistant", "A"), ("assistant", "B")))

Make = Callable[..., Format]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Writes ``mine.py`` in the working folder and makes the format of ``mine.py:row``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(source: str, *, kind: str = "mine.py:row", bind: bool = True, **keys: Any) -> Format:
        (tmp_path / "mine.py").write_text(source)
        config = config_with({"type": kind}, **keys)
        return make_format(config.data.datasets[0], config, tiny_tokenizer("chatml") if bind else None)

    return make


LATE = """
    class Strategy:
        def tokenize_prompt(self, row):
            return {{"input_ids": [1] if {} else [2]}}
    return Strategy()
"""


def returning(value: object) -> str:
    return f"def row(row):\n    return {value!r}\n"


@pytest.mark.parametrize(
    ("made", "keys", "sample"),
    [
        ({"messages": [Q, A]}, {}, Conversation),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, {}, Conversation),
        ({"prompt": "Q", "completion": "A"}, {}, Document),
        ({"instruction": "Q", "output": "A"}, {}, Document),
        ({"text": "words"}, {}, Document),
        ({"segments": [{"label": True, "text": "words"}]}, {}, Document),
        ({"input_ids": [1, 2]}, {}, Tokens),
        ([{"text": "one"}, {"text": "two"}], {}, Several),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, {"rl": "dpo"}, Preference),
        ({"chosen": [Q, A], "rejected": [Q, B]}, {"rl": "orpo"}, Preference),
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, {"reward_model": True}, Preference),
        ({"prompt": "Q", "completion": "A", "label": True}, {"rl": "kto"}, Unpaired),
        ({"prompt": "Q", "completions": ["A"], "labels": [True]}, {"process_reward_model": True}, Stepwise),
        ({"prompt": [Q], "answer": "4"}, {"rl": "grpo"}, Prompt),
        ({"prompt": [Q], "ground_truth": "4"}, {"rl": "ebft"}, Prompt),
    ],
)
def test_what_a_function_gives_is_read_by_the_format_its_keys_say(
    own: Make, made: object, keys: dict[str, Any], sample: type
) -> None:
    assert type(own(returning(made), **keys).read({"x": 1})) is sample


def test_a_function_may_give_a_sample(own: Make) -> None:
    source = (
        "from whet.core.types import Document, Segment\n"
        "def row(row):\n    return Document((Segment(row['x'], True),))\n"
    )
    assert own(source).read({"x": "words"}) == Document((Segment("words", True),))


def test_none_leaves_the_row_out(own: Make) -> None:
    with pytest.raises(RowLeftOut) as caught:
        own("def row(row):\n    return None\n").read({})
    assert str(caught.value) == "left out by the user's own format: mine.py:row gave None"


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        (
            "def row(row):\n    y = 1\n    return {'text': row['y']}\n",
            {"x": 1},
            "error in mine.py:row: KeyError: 'y' (line 3)",
        ),
        (returning(3), {}, "wrong type: mine.py:row gave a value of type int, not a row"),
        (returning([[{"text": "x"}]]), {}, "wrong type: mine.py:row gave a list within a list, not a list of rows"),
        (returning({"messages": {1}}), {}, "wrong type: 'messages' is a value of type set, not a list"),
        ("import sys\ndef row(row):\n    sys.exit(3)\n", {}, "error in mine.py:row: SystemExit: 3 (line 3)"),
        (returning([]), {}, "wrong type: mine.py:row gave an empty list, not a row"),
        (returning({"x": 1}), {}, "unknown row: mine.py:row gave x; known are input_ids, messages, conversations, "),
        (returning({"messages": []}), {}, "empty conversation: 'messages' is an empty list"),
    ],
)
def test_a_function_that_fails_makes_a_bad_row(own: Make, source: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(RowError) as caught:
        own(source).read(row)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("def row(row): ...", "mine.py:rwo", "there is no function 'rwo' in mine.py -> did you mean 'row'?"),
        ("", "mine.py:row", "there is no function 'row' in mine.py -> it has no functions"),
        ("row = 3", "mine.py:row", "there is no function 'row' in mine.py"),
        ("x", "mine.py:row", "importing 'mine.py:row' failed: NameError: name 'x' is not defined (mine.py, line 1)"),
        ("import sys\nsys.exit(0)", "mine.py:row", "importing 'mine.py:row' failed: SystemExit: 0 (mine.py, line 2)"),
        ("def row(", "mine.py:row", "importing 'mine.py:row' failed: SyntaxError: "),
        ("", "other.py:row", "there is no file 'other.py' -> paths count from the working folder"),
        ("def row(row): ...", "mine.rows.row", "importing 'mine.rows.row' failed: ModuleNotFoundError: "),
        (
            "def row(tokenizer): 1 / 0",
            "mine.py:row",
            "mine.py:row failed: ZeroDivisionError: division by zero (line 1)",
        ),
    ],
)
def test_code_that_cannot_be_used_is_an_error_of_the_config(own: Make, source: str, kind: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        own(source, kind=kind)
    assert message in str(caught.value)


def test_a_dotted_name_is_a_module_of_ones_own(own: Make, tmp_path: Path) -> None:
    folder = tmp_path / "my_dotted_package"
    folder.mkdir()
    (folder / "rows.py").write_text(returning({"text": "words"}))
    assert isinstance(own("", kind="my_dotted_package.rows.row").read({}), Document)


def test_a_file_is_looked_for_beside_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.py").write_text(returning({"text": "words"}))
    monkeypatch.chdir(tmp_path)
    config = config_with({"type": "mine.py:row"}).model_copy(update={"file": "configs/my.yaml"})
    assert isinstance(make_format(config.data.datasets[0], config).read({}), Document)


def test_a_missing_file_is_told_with_all_other_problems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("")
    values = {"base_model": "org/m", "learning_rate": 1e-4}
    with pytest.raises(ConfigError) as caught:
        make_config({**values, "datasets": [{"path": "org/d", "type": "mien.py:row"}]})
    assert "datasets[0].type: there is no 'mien.py' -> did you mean 'mine.py'?" in str(caught.value)
    assert make_config({**values, "datasets": [{"path": "org/d", "type": "mine.py:row"}]}).warnings == ()


def test_only_what_a_function_reads_of_the_config_is_read(own: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def row(cfg):\n    cfg.seed\n    return lambda sample: sample\n")
    reads = Reads()
    config = reads.of(config_with({"type": "mine.py:row"}, rl="dpo"))
    make_format(config.data.datasets[0], config, tiny_tokenizer("chatml"))
    assert reads.values["dataset.type"] == "mine.py:row"
    assert "loop.seed" in reads.values
    assert not {"optimizer.learning_rate", "output.output_dir", "model.base_model"} & set(reads.values)


@pytest.mark.parametrize(
    ("source", "option"),
    [
        ("def row(cfg):\n    return lambda row: {'text': str(cfg.micro_batch_size)}\n", "micro_batch_size"),
        ("def row(cfg):\n    return lambda row: {'text': cfg['base_model']}\n", "base_model"),
        ("def row(cfg):\n    return lambda row: {'text': getattr(cfg, 'seed', 'x')}\n", "seed"),
        ("def row(cfg):\n    return lambda row: {'text': str(dict(cfg))}\n", "base_model"),
        ("def row(cfg):\n    d = cfg.datasets\n    return lambda row: {'text': d[0].path}\n", "datasets[0].path"),
        ("def row(tokenizer, cfg, ds_cfg):\n" + LATE.format("ds_cfg.field"), "datasets[0].field"),
        ("def row(tokenizer, cfg, ds_cfg):\n    b = cfg.bnb_config_kwargs\n" + LATE.format("cfg.seed"), "seed"),
    ],
)
def test_an_option_that_rows_would_be_too_late_to_name_is_an_error(own: Make, source: str, option: str) -> None:
    """In every process: here there is no recorder."""
    with pytest.raises(ConfigError) as caught:
        own(source).read({"x": 1})
    assert f"mine.py:row reads `{option}` while it reads rows, too late" in str(caught.value)
    assert str(caught.value).endswith("-> read it outside the row function, and use the value there")


def test_an_option_that_was_read_in_time_may_be_read_again(own: Make) -> None:
    source = (
        "def row(cfg):\n    first = cfg.min_sample_len, cfg.datasets[0].path\n    def transform(row):\n"
        "        assert 'base_model' in cfg and cfg.nothing is None and 'nothing' not in cfg and len(list(cfg))\n"
        "        return {'text': f'{cfg.min_sample_len} {cfg.datasets[0].path} {cfg.datasets[0].nothing}'}\n"
        "    return transform\n"
    )
    sample = own(source, min_sample_len=7).read({})
    assert isinstance(sample, Document)
    assert [segment.text for segment in sample.segments] == ["7 rows.jsonl None"]


def test_a_prepared_set_is_named_by_every_option_that_a_function_reads(own: Make, tmp_path: Path) -> None:
    def prepared(source: str, size: int) -> str:
        (tmp_path / "mine.py").write_text(source)
        row = {"path": "a.jsonl", "type": "mine.py:row"}
        values = {"base_model": "org/m", "learning_rate": 1e-4, "datasets": [row], "micro_batch_size": size}
        config = make_config(values, check_files=False)
        found = prepare(config, resolve(config, Hardware("cpu")), tiny_tokenizer("chatml"))
        return str(tiny_tokenizer("chatml").decode(found.train.tokens(0)[0]))

    (tmp_path / "a.jsonl").write_text('{"x": 1}\n')
    late = "def row(cfg):\n    return lambda row: {'text': f'SEQ {cfg.micro_batch_size}'}\n"
    with pytest.raises(ConfigError, match="reads `micro_batch_size` while it reads rows"):
        prepared(late, 1)
    in_time = "def row(cfg):\n    size = cfg.micro_batch_size\n    return lambda row: {'text': f'SEQ {size}'}\n"
    assert [prepared(in_time, size)[:5] for size in (1, 2)] == ["SEQ 1", "SEQ 2"]


def test_options_of_a_dataset_are_those_of_the_format_that_reads_what_the_function_gives(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def row(row):\n    return row\n")
    config = config_with(
        {"type": f"{tmp_path}/mine.py:row", "field_messages": "talk", "roles": {"assistant": ("bot",)}}
    )
    format_ = make_format(config.data.datasets[0], config)
    assert format_.read({"talk": [Q, {"role": "bot", "content": "A"}]}) == format_.read({"talk": [Q, A]})


# -- identity ---------------------------------------------------------------------------------------------------------


def test_the_identity_is_that_of_the_code_and_of_what_it_imports_beside_it(own: Make, tmp_path: Path) -> None:
    (tmp_path / "helper_a.py").write_text("NAME = 'text'\n")
    source = "import helper_a\ndef row(row):\n    return {helper_a.NAME: 'words'}\n"
    first = format_identity(own(source))
    assert first
    assert format_identity(own(source)) == first
    assert format_identity(own(source + "# other\n")) != first
    (tmp_path / "helper_a.py").write_text("NAME = 'text' # other\n")
    assert format_identity(own(source)) != first


@pytest.mark.parametrize(
    ("files", "source"),
    [
        (["helper_b.py"], "def row(row):\n    import helper_b\n    return row\n"),
        (["helper_c.py"], "def row(row):\n    from helper_c import say as said\n    return row\n"),
        (["inner/deep.py"], "def row(row):\n    import inner.deep\n    return row\n"),
        (["pack/__init__.py"], "def row(row):\n    from pack import say\n    return row\n"),
        (
            ["pack2/__init__.py", "pack2/part.py"],
            "class A:\n    def f(self):\n        from pack2 import part\ndef row(row): ...",
        ),
        (["helper_d.py"], "from importlib import import_module\ndef row(row):\n    import_module('helper_d')\n"),
        (["helper_e.py"], "def row(row):\n    __import__('helper_e')\n"),
        (["map.txt"], "DEPENDS_ON = ['map.txt']\ndef row(row): ..."),
        (["lists/a.txt", "lists/b/c.txt"], "DEPENDS_ON: list[str] = ('lists',)\ndef row(row): ..."),
        (["lib/helper_f.py"], "import sys\nsys.path.append({folder!r} + '/lib')\nimport helper_f\ndef row(row): ..."),
    ],
)
def test_every_file_that_a_function_is_made_of_is_part_of_its_identity(
    own: Make, tmp_path: Path, files: list[str], source: str
) -> None:
    source = source.replace("{folder!r}", repr(str(tmp_path)))
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("say = 'one'\n")
    seen = [format_identity(own(source))]
    assert format_identity(own(source)) == seen[0]
    for file in files:
        (tmp_path / file).write_text("say = 'another'\n")
        seen.append(format_identity(own(source)))
    (tmp_path / "beside.py").write_text("")
    assert format_identity(own(source)) == seen[-1]
    assert len(set(seen)) == len(files) + 1


def test_files_are_followed_from_module_to_module(own: Make, tmp_path: Path) -> None:
    (tmp_path / "helper_g.py").write_text("def say():\n    import chain.link\n")
    (tmp_path / "chain").mkdir()
    (tmp_path / "chain" / "link.py").write_text("from . import end\nfrom .. import beyond\nimport chain.link\n")
    (tmp_path / "chain" / "end.py").write_text("DEPENDS_ON = ['words.txt']\n")
    (tmp_path / "chain" / "words.txt").write_text("one")
    source = "def row(row):\n    import helper_g, numpy, no_such_module\n"
    first = format_identity(own(source))
    (tmp_path / "chain" / "words.txt").write_text("two")
    second = format_identity(own(source))
    (tmp_path / "beyond.py").write_text("")
    assert len({first, second, format_identity(own(source))}) == 3


def test_a_named_module_is_followed_too_and_imported_anew_when_it_changes(own: Make, tmp_path: Path) -> None:
    folder = tmp_path / "my_followed_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "words.py").write_text("WORD = 'one'\n")
    (folder / "rows.py").write_text("from my_followed_package.words import WORD\ndef row(row): return {'text': WORD}\n")
    seen = []
    for word in ("one", "another", "one"):
        (folder / "words.py").write_text(f"WORD = '{word}'\n")
        format_ = own("", kind="my_followed_package.rows.row")
        sample = format_.read({})
        assert isinstance(sample, Document)
        assert sample.segments[0].text == word
        seen.append(format_identity(format_))
    assert seen[0] == seen[2] != seen[1]


def test_a_helper_that_changed_is_imported_anew(own: Make, tmp_path: Path) -> None:
    for source in (
        "import helper_h\ndef row(row):\n    return {'text': helper_h.WORD}\n",
        "def row(row):\n    import helper_h\n    return {'text': helper_h.WORD}\n",
    ):
        for word in ("one", "another", "one"):
            (tmp_path / "helper_h.py").write_text(f"WORD = '{word}'\n")
            sample = own(source).read({})
            assert isinstance(sample, Document)
            assert sample.segments[0].text == word


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "import os\nDEPENDS_ON = ['map.txt']\ndef row(row): ...",
            "mine.py:2: DEPENDS_ON: there is no file 'map.txt' -> correct the path; it counts from ",
        ),
        (
            "name = 'x'\nDEPENDS_ON = [name]\ndef row(row): ...",
            'mine.py:2: DEPENDS_ON is no list of texts -> write the paths themselves: DEPENDS_ON = ["names.txt"]',
        ),
        ("DEPENDS_ON = 'map.txt'\ndef row(row): ...", "mine.py:1: DEPENDS_ON is no list of texts"),
    ],
)
def test_what_a_function_depends_on_is_there(own: Make, source: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        own(source)
    assert str(caught.value).startswith(message)


def test_the_place_of_a_dataset_is_part_of_the_identity_where_the_function_is_given_it(tmp_path: Path) -> None:
    source = "def row(cfg{}):\n    return lambda row: {{'text': 'words'}}\n"
    for parameters, is_given in ((", dataset_idx=0", True), (", **options", True), ("", False)):
        (tmp_path / "mine.py").write_text(source.format(parameters))
        row = {"type": f"{tmp_path}/mine.py:row"}
        config = config_with(row, row)
        first, second = (format_identity(make_format(dataset, config)) for dataset in config.data.datasets)
        assert (first != second) is is_given


def test_formats_of_ours_have_no_identity_beside_the_code_of_whet() -> None:
    config = config_with({"type": "alpaca"})
    assert format_identity(make_format(config.data.datasets[0], config)) == ""


def test_a_file_that_changed_is_imported_anew(own: Make) -> None:
    assert own(returning({"text": "one"})).read({}) != own(returning({"text": "two"})).read({})


# -- chat template ----------------------------------------------------------------------------------------------------


def test_a_function_says_that_it_needs_no_template(own: Make) -> None:
    source = "def row(row):\n    return row\nrow.template = None\n"
    format_ = own(source, rl="dpo")
    assert format_.template is None
    assert isinstance(format_.read({"prompt": "Q", "chosen": "A", "rejected": "B"}), PreferenceText)
    with pytest.raises(RowError, match=r"no chat template: mine\.py:row gave messages: set chat_template"):
        own(source).read({"messages": [Q, A]})


def test_without_a_template_anywhere_texts_are_read_all_the_same(own: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def row(row):\n    return row\n")
    config = config_with({"type": "mine.py:row"})
    tokenizer = copy.deepcopy(tiny_tokenizer("chatml"))
    tokenizer.chat_template = None
    format_ = make_format(config.data.datasets[0], config, tokenizer)
    assert format_.template is None
    assert isinstance(format_.read({"text": "words"}), Document)
    config = config_with({"type": "mine.py:row"}, chat_template="chatml")
    assert make_format(config.data.datasets[0], config, tokenizer).template == "configured"


# -- functions made for Axolotl ---------------------------------------------------------------------------------------

STRATEGY = """
class Strategy:
    def __init__(self, tokenizer, key):
        self.tokenizer, self.key = tokenizer, key
    def tokenize_prompt(self, row):
        ids = self.tokenizer(row[self.key])["input_ids"]
        return {"input_ids": ids, "labels": [-100, *ids[1:]], "attention_mask": [1] * len(ids)}

def row(tokenizer, cfg, ds_cfg=None):
    assert cfg.base_model and cfg.no_such_key is None and cfg["sequence_len"] and "datasets" in cfg
    return Strategy(tokenizer, ds_cfg["field"] or "x")
"""


def test_a_strategy_tokenises_rows(own: Make) -> None:
    sample = own(STRATEGY).read({"x": "abc"})
    assert isinstance(sample, Tokens)
    assert list(sample.supervised) == [False, *[True] * (len(sample.input_ids) - 1)]


def test_a_strategy_of_batches_gives_several_samples(own: Make) -> None:
    source = (
        "class S:\n    supports_batched = True\n    def tokenize_prompt(self, rows):\n"
        "        return {'input_ids': [[1, 2], [3]], 'labels': [[1, 2], [3]]}\n"
        "def row(tokenizer, cfg): return S()\n"
    )
    sample = own(source).read({"x": 1})
    assert isinstance(sample, Several)
    assert [list(tokens.input_ids) for tokens in sample.samples if isinstance(tokens, Tokens)] == [[1, 2], [3]]


def test_a_transform_gives_texts_as_they_are(own: Make) -> None:
    source = (
        "def row(cfg, dataset_idx=0, **kwargs):\n"
        "    def transform(sample, tokenizer=None):\n"
        "        assert tokenizer is not None\n"
        "        return {'prompt': f'<{dataset_idx}>' + sample['q'], 'chosen': 'A', 'rejected': 'B'}\n"
        "    return transform\n"
    )
    assert own(source, rl="dpo").read({"q": "Q"}) == PreferenceText("<0>Q", "A", "B")


def test_a_transform_may_remove_columns(own: Make) -> None:
    source = (
        "def row(cfg):\n    return (lambda sample: {'prompt': 'Q', 'truth': sample['a']}), {'remove_columns': ['a']}\n"
    )
    assert own(source, rl="grpo").read({"a": 4, "b": 5}) == Prompt(text="Q", columns={"b": 5, "truth": 4})
    everything = source.replace("['a']}\n", "'__all__'}\n").replace(
        "{'remove_columns': ['a']}", "{'remove_columns': '__all__'}"
    )
    assert own(everything, rl="grpo").read({"a": 4, "b": 5}) == Prompt(text="Q", columns={"truth": 4})
    kto = "def row(cfg):\n    return lambda sample: {'completion': 'A', 'label': True}\n"
    assert own(kto, rl="kto").read({"prompt": "Q"}) == UnpairedText("Q", "A", True)


def test_input_transform_comes_before_the_messages_are_read(own: Make, tmp_path: Path) -> None:
    (tmp_path / "turn.py").write_text("def turn(row):\n    return {'messages': row['talk']}\n")
    config = config_with({"type": "messages.chat", "input_transform": "turn.py:turn"})
    format_ = make_format(config.data.datasets[0], config, tiny_tokenizer("chatml"))
    sample = format_.read({"talk": [Q, A]})
    assert isinstance(sample, Conversation)
    assert sample.messages == [Q, A]
    assert format_identity(format_)
