"""Laws of a mix: the shares that were asked for, every sample evenly often, parts that never mix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from whet.config import Config, make_config
from whet.core.errors import ConfigError
from whet.data.mixing import mix_of
from whet.data.order import Order
from whet.data.packing import EMPTY

NAMES = ("chat", "code", "books")
SIZES = (9000, 4000, 2000)
SOURCE = np.repeat(np.arange(3), SIZES)
LENGTHS = np.clip(np.random.default_rng(3).lognormal(4.5 + SOURCE / 2, 0.8), 4, 1024).astype(np.int64)
TOKENS = np.bincount(SOURCE, weights=LENGTHS)


def config_of(num_rows: int = 3, rows: Any = (), **keys: Any) -> Config:
    """A config with so many datasets; ``rows`` adds keys to them."""
    datasets = [
        {"path": f"{name}.jsonl", "type": "completion", **(rows[index] if rows else {})}
        for index, name in enumerate(NAMES[:num_rows])
    ]
    return make_config({"base_model": "m", "learning_rate": 1, "datasets": datasets, **keys}, check_files=False)


def order_of(config: Config, lengths=LENGTHS, source=SOURCE, capacity=1024, packed=True, **options: Any) -> Order:
    mix = mix_of(config, lengths, source, NAMES, 42)
    return Order(lengths, capacity, packed, 1, 42, mix=mix, **options)


def weights(*values: float) -> list[dict[str, float]]:
    return [{"weight": value} for value in values]


def epochs(*values: float) -> list[dict[str, float]]:
    return [{"epochs": value} for value in values]


ASKED: list[tuple[str, dict[str, Any], list[float]]] = [
    ("weights", {"rows": weights(7, 2, 1)}, [0.7, 0.2, 0.1]),
    ("weights by samples", {"rows": weights(1, 1, 2), "mixing_by": "samples"}, [0.25, 0.25, 0.5]),
    ("temperature", {"mixing_temperature": 2.0}, (TOKENS**0.5 / (TOKENS**0.5).sum()).tolist()),
    ("no difference", {"mixing_temperature": 1.0}, (TOKENS / TOKENS.sum()).tolist()),
    (
        "phases",
        {"phases": [{"share": 0.25, "weights": {"chat": 9, "code": 1}}, {"share": 0.75, "weights": {"books": 3}}]},
        [0.225, 0.025, 0.75],
    ),
    ("one after the other", {"rows": weights(7, 2, 1), "order": "sequential"}, [0.7, 0.2, 0.1]),
    (
        "epochs",
        {"rows": epochs(0.5, 3, 1)},
        (TOKENS * [0.5, 3, 1] / (TOKENS * [0.5, 3, 1]).sum()).tolist(),
    ),
]


@pytest.mark.parametrize(("keys", "asked"), [pytest.param(keys, asked, id=name) for name, keys, asked in ASKED])
def test_shares_are_what_was_asked_for_in_every_epoch(keys, asked):
    order = order_of(config_of(**keys))
    by_samples = keys.get("mixing_by") == "samples"
    for epoch in (0, 1, 6):
        members = order.epoch(epoch).members
        seen = np.bincount(SOURCE[members], weights=None if by_samples else LENGTHS[members])
        assert seen / seen.sum() == pytest.approx(asked, abs=5e-4)
    for share, wanted in zip(order.mix.shares(order.times_seen(1000, 2), LENGTHS), asked, strict=True):
        assert share.asked == pytest.approx(wanted)


@pytest.mark.parametrize(("keys", "asked"), [pytest.param(keys, asked, id=name) for name, keys, asked in ASKED])
def test_a_weighted_epoch_is_as_long_as_the_datasets_together(keys, asked):
    if "epochs" in keys.get("rows", [{}])[0]:
        keys = {"rows": epochs(1, 1, 1)}
    by_samples = keys.get("mixing_by") == "samples"
    members = order_of(config_of(**keys)).epoch(0).members
    assert (len(members) if by_samples else LENGTHS[members].sum()) == pytest.approx(
        len(LENGTHS) if by_samples else LENGTHS.sum(), rel=1e-3
    )


def test_packs_of_a_mix_are_full():
    order = order_of(config_of(rows=weights(7, 2, 1)))
    assert LENGTHS[order.epoch(3).members].sum() >= 0.998 * order.num_rows * 1024


sizes = st.lists(st.integers(0, 40), min_size=2, max_size=3).filter(lambda found: found[0] > 0 and found[1] > 0)
mixes = st.one_of(
    st.lists(st.floats(0.05, 5), min_size=3, max_size=3).map(lambda found: {"rows": weights(*found)}),
    st.lists(st.floats(0.05, 5), min_size=3, max_size=3).map(lambda found: {"rows": epochs(*found)}),
    st.floats(0.3, 9).map(lambda found: {"mixing_temperature": found}),
    st.tuples(st.floats(0.1, 0.9), st.floats(0.1, 9)).map(
        lambda found: {
            "phases": [
                {"share": found[0], "weights": {"chat": found[1], "code": 1}},
                {"share": 1 - found[0], "weights": {"code": found[1], "chat": 1}},
            ]
        }
    ),
)


def small_order(sizes_, keys, seed, packed=True, **options):
    source = np.repeat(np.arange(len(sizes_)), sizes_)
    lengths = np.random.default_rng(seed).integers(1, 33, len(source))
    if "rows" in keys:
        keys = {**keys, "rows": keys["rows"][: len(sizes_)]}
        present = [row for row, size in zip(keys["rows"], sizes_, strict=True) if size or "epochs" in row]
        keys["rows"] = keys["rows"] if len(present) == len(sizes_) else keys["rows"][:2]
    num_rows = len(keys["rows"]) if "rows" in keys else len(sizes_)
    keep = source < num_rows
    config = config_of(num_rows, **keys)
    try:
        return order_of(config, lengths[keep], source[keep], capacity=32, packed=packed, **options)
    except ConfigError as error:
        assume("an epoch would show" not in str(error))  # of so few samples a fraction may be less than one
        raise


@settings(max_examples=60)
@given(sizes, mixes, st.integers(0, 99), st.booleans(), st.integers(1, 7))
def test_each_sample_is_seen_floor_or_ceil_of_its_dataset_s_share_of_the_run(sizes, keys, seed, packed, num_epochs):
    order = small_order(sizes, keys, seed, packed)
    seen = np.zeros(order.num_samples, dtype=int)
    for epoch in range(num_epochs):
        rows = order.epoch(epoch)
        assert len(rows) == order.num_rows
        assert packed is False or (rows.sums(order.lengths) <= 32).all()
        seen += np.bincount(rows.members, minlength=order.num_samples)
    for dealt in order.mix.dealt:
        total, q = num_epochs * sum(dealt.widths), dealt.deck.q
        assert set(seen[dealt.deck.samples].tolist()) <= {total // q, -(-total // q)}
    assert np.array_equal(seen, order.times_seen(num_epochs * order.steps_per_epoch(3), 3))


@settings(max_examples=60)
@given(sizes, mixes, st.integers(0, 99), st.integers(0, 4), st.sampled_from([None, 4]))
def test_the_samples_of_a_step_do_not_depend_on_the_ranks(sizes, keys, seed, epoch, balance):
    order = small_order(sizes, keys, seed, balance_steps=balance)
    for step in range(order.steps_per_epoch(4)):
        expected = sorted(order.step_samples(epoch, step, 4).tolist())
        for world_size in (1, 2, 4):
            accumulation = 4 // world_size
            found = [
                sample
                for rank in range(world_size)
                for batch in order.micro_batches(epoch, rank, world_size)[step * accumulation :][:accumulation]
                for row in batch
                for sample in row.tolist()
            ]
            assert sorted(found) == expected


@settings(max_examples=30)
@given(sizes, mixes, st.integers(0, 99), st.integers(0, 99), st.integers(1, 5))
def test_steps_in_the_middle_of_an_epoch_are_counted_exactly(sizes, keys, seed, num_steps, accumulation):
    order = small_order(sizes, keys, seed)
    seen = np.zeros(order.num_samples, dtype=int)
    for step in range(num_steps):
        epoch, step_of_epoch = divmod(step, order.steps_per_epoch(accumulation))
        np.add.at(seen, order.step_samples(epoch, step_of_epoch, accumulation), 1)
    assert np.array_equal(seen, order.times_seen(num_steps, accumulation))


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("neighbours", [True, False])
def test_datasets_one_after_the_other_never_share_a_row(packed, shuffle, neighbours):
    order = order_of(config_of(order="sequential"), packed=packed, shuffle=shuffle, neighbours=neighbours)
    rows = order.epoch(1)
    sources = [set(SOURCE[rows[row]].tolist()) for row in range(len(rows))]
    assert all(len(found) == 1 for found in sources)
    flat = [next(iter(found)) for found in sources]
    assert flat == sorted(flat)
    assert sorted(rows.members.tolist()) == list(range(len(LENGTHS)))


def test_phases_come_one_after_the_other_with_their_own_mixes():
    phases = [
        {"share": 0.3, "weights": {"chat": 0.9, "code": 0.1}},
        {"share": 0.7, "weights": {"code": 1, "books": 1}},
    ]
    order = order_of(config_of(phases=phases))
    rows, border = order.epoch(2), int((order.mix.deal(0, 2) != EMPTY).sum())
    first, second = rows.members[:border], rows.members[border:]
    assert border in rows.offsets, "no pack crosses the border"
    for members, asked in ((first, [0.9, 0.1, 0.0]), (second, [0.0, 0.5, 0.5])):
        tokens = np.bincount(SOURCE[members], weights=LENGTHS[members], minlength=3)
        assert tokens / tokens.sum() == pytest.approx(asked, abs=1e-3)
    assert LENGTHS[first].sum() == pytest.approx(0.3 * LENGTHS.sum(), rel=1e-3)


def test_neighbours_are_packed_in_order_and_packs_are_shuffled():
    order = order_of(config_of(), neighbours=True)
    rows = order.epoch(0)
    assert all((np.diff(rows[row]) == 1).all() for row in range(len(rows)))
    firsts = [int(rows[row][0]) for row in range(len(rows))]
    assert firsts != sorted(firsts)
    kept = order_of(config_of(), neighbours=True, shuffle=False).epoch(0)
    assert kept.members.tolist() == list(range(len(LENGTHS)))


def test_without_a_mix_the_order_is_that_of_an_order_without_one():
    plain = Order(LENGTHS, 1024, True, 1, 42)
    assert np.array_equal(order_of(config_of()).epoch(3).members, plain.epoch(3).members)


def test_what_a_run_sees_of_each_dataset_is_told():
    order = order_of(config_of(rows=epochs(2, 1, 0.5)), packed=False)
    shares = order.mix.shares(order.times_seen(order.steps_per_epoch(1) * 2, 1), LENGTHS)
    assert [share.name for share in shares] == list(NAMES)
    assert [share.times_seen for share in shares] == pytest.approx([4, 2, 1])
    assert sum(share.realised for share in shares) == pytest.approx(1)
    plain = order_of(config_of())
    assert [share.asked for share in plain.mix.shares(plain.times_seen(3, 1), LENGTHS)] == [None] * 3
    assert Order(LENGTHS, 1024, True, 1, 42).mix.shares(LENGTHS, LENGTHS) == ()


def test_a_dataset_that_is_asked_for_and_has_no_sample_is_refused():
    only_two = SOURCE < 2
    with pytest.raises(ConfigError, match=r"'books' is to be 10\.0% of the mix, and it has no sample to train on"):
        order_of(config_of(rows=weights(7, 2, 1)), LENGTHS[only_two], SOURCE[only_two])
    left_out = order_of(config_of(mixing_temperature=3), LENGTHS[only_two], SOURCE[only_two])
    assert [share.asked for share in left_out.mix.shares(left_out.times_seen(1, 1), LENGTHS[only_two])][2] == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (epochs(1e9, 1, 1), r"an epoch would show 'chat' 1e\+09 times, 9e\+12 samples -> ask for less of it"),
        (epochs(1e-6, 1e-6, 1e-6), r"an epoch would show 0\.015 of the 15,000 samples of all datasets -> raise epochs"),
    ],
)
def test_an_epoch_that_cannot_be_planned_is_refused(rows, message):
    with pytest.raises(ConfigError, match=message):
        order_of(config_of(rows=rows))


@pytest.mark.parametrize(
    ("keys", "asked"),
    [
        ({"rows": weights(1e308, 1e308, 1e308)}, [1 / 3, 1 / 3, 1 / 3]),
        ({"phases": [{"share": 1, "weights": {"chat": 1e308, "code": 1e308}}]}, [0.5, 0.5, 0]),
        ({"mixing_temperature": 1e-9}, [1, 0, 0]),
    ],
)
def test_shares_of_enormous_weights_are_finite(keys, asked):
    tokens_equal = np.full(sum(SIZES), 10)
    mix = order_of(config_of(**keys), tokens_equal).mix
    assert mix.asked == pytest.approx(asked)


def test_a_phase_names_datasets_as_they_are_reported():
    phases = [{"share": 1, "weights": {"chat-2": 1}}]
    with pytest.raises(ConfigError, match="there is no dataset 'chat-2' -> did you mean 'chat'"):
        order_of(config_of(phases=phases))
