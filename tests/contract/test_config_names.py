"""The names that config knows by heart are those that the later layers build."""

from __future__ import annotations

from whet.config import names
from whet.data.formats import TABLES, UNTYPED
from whet.data.formats.instruction import STYLES
from whet.data.templates.resolve import shipped
from whet.methods import METHODS
from whet.training.optimizers import OPTIMIZERS
from whet.training.schedules import SCHEDULERS


def test_every_name_of_the_config_is_built_and_every_built_name_can_be_written() -> None:
    assert set(names.OPTIMIZERS) == set(OPTIMIZERS.names())
    assert set(names.SCHEDULERS) == set(SCHEDULERS.names())
    assert set(names.METHODS) == set(METHODS.names()) - {"sft"}  # no `rl` at all
    assert set(names.CHAT_TEMPLATES) == set(shipped())
    assert set(names.TYPES) == set(TABLES) == set(UNTYPED)
    for task, table in TABLES.items():
        assert set(names.TYPES[task]) == set(table.names()) - {"tokens"}  # no `type` at all


def test_every_style_is_one_of_the_instruction_formats() -> None:
    assert set(names.STYLES) <= set(STYLES)
    assert set(names.STYLED_TYPES) <= set(TABLES["supervised"].names())


def test_what_is_refused_is_not_built() -> None:
    assert not set(names.OPTIMIZERS_REFUSED) & set(names.OPTIMIZERS)
    assert not set(names.CHAT_TEMPLATES_NOT_YET) & set(names.CHAT_TEMPLATES)
    methods = (names.METHODS, names.METHODS_PREPARED, names.METHODS_NOT_YET)
    assert len({name for group in methods for name in group}) == sum(map(len, methods))
    assert not set(names.DATASET_TYPES_NOT_YET) & set(names.DATASET_TYPES)
