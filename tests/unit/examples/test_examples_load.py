"""Every example config loads, names what is there, and says how to run it; the base model is what its page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.config import load_config

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
MODEL = ROOT / "examples/base_model/model"


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_loads_and_what_it_names_is_in_the_repository(path: Path) -> None:
    config = load_config(path)
    assert config.warnings == ()
    assert (ROOT / str(config.model.base_model) / "config.json").is_file()
    for dataset in config.data.datasets:
        assert (ROOT / str(dataset.path)).is_file()
    if config.score.score_dataset:
        assert (ROOT / config.score.score_dataset).is_file()


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_says_how_to_run_it(path: Path) -> None:
    assert f"whet train examples/{path.name}" in path.read_text(encoding="utf-8")


def test_no_two_examples_write_into_the_same_folder() -> None:
    folders = [load_config(path).output.output_dir for path in EXAMPLES]
    assert len(set(folders)) == len(folders)


def test_the_recipe_of_the_base_model_loads() -> None:
    config = load_config(ROOT / "examples/base_model/pretrain.yaml", check_files=False)  # its corpus is made first
    assert [dataset.type for dataset in config.data.datasets] == ["completion"]


def test_the_base_model_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 20_000_000


def test_a_name_is_the_same_tokens_wherever_it_stands() -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    name = tokenizer("Tavorkdral", add_special_tokens=False)["input_ids"]
    for before, after in ((" ", "."), ('"', '"'), ("\n", ","), ("for ", " of"), ("(", ")")):
        ids = tokenizer(before + "Tavorkdral" + after, add_special_tokens=False)["input_ids"]
        assert any(ids[start : start + len(name)] == name for start in range(len(ids)))


@pytest.mark.parametrize("text", ["", " a  b\n\n c\t", "naïve ☃ 北京", 'def f(x):\n    return {"a": [1, 22, 333]}\n'])
def test_the_tokenizer_gives_back_any_text(text: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
