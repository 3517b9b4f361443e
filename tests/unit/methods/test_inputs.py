"""The order of training is the one the config asks for."""

from __future__ import annotations

import numpy as np
import pytest
from tests.tiny_training import make_resolved, random_samples, write_prepared

from whet.core.errors import ConfigError
from whet.methods.inputs import training_order
from whet.record import RunRecord
from whet.stages import announce, plan_run

ROWS = ({"path": "chat.jsonl", "type": "completion"}, {"path": "code.jsonl", "type": "completion"})
PACKED = {"sample_packing": True, "sequence_len": 64}


@pytest.fixture
def two(tmp_path):
    """Two datasets, behind each other."""
    return write_prepared(tmp_path / "set", random_samples(40), sources=[0] * 30 + [1] * 10, names=("chat", "code"))


def test_shuffle_merged_datasets_false_keeps_the_order_of_the_data(tmp_path):
    prepared = write_prepared(tmp_path / "set", random_samples(20))
    kept = training_order(make_resolved(tmp_path, shuffle_merged_datasets=False), prepared.train)
    assert kept.epoch(1).members.tolist() == list(range(20))
    shuffled = training_order(make_resolved(tmp_path), prepared.train)
    assert shuffled.epoch(1).members.tolist() != list(range(20))


def test_curriculum_sampling_keeps_the_order_of_the_data(two, tmp_path):
    kept = training_order(make_resolved(tmp_path, curriculum_sampling=True), two.train)
    assert kept.epoch(1).members.tolist() == list(range(40))


def test_packing_sequentially_keeps_neighbours_together(two, tmp_path):
    rows = training_order(make_resolved(tmp_path, sample_packing_sequentially=True, **PACKED), two.train).epoch(1)
    assert all((np.diff(rows[row]) == 1).all() for row in range(len(rows)))


def test_order_sequential_shows_one_dataset_after_the_other(two, tmp_path):
    order = training_order(make_resolved(tmp_path, order="sequential", **PACKED), two.train)
    members = order.epoch(0).members.tolist()
    assert members != sorted(members)
    assert [member < 30 for member in members] == [True] * 30 + [False] * 10


def test_balanced_steps_have_the_rows_of_the_whole_batch(two, tmp_path):
    keys = {"micro_batch_size": 1, "gradient_accumulation_steps": 3, **PACKED}
    even, plain = (
        training_order(make_resolved(tmp_path, sample_packing_balance=balance, **keys), two.train)
        for balance in (True, False)
    )
    assert even.num_rows == plain.num_rows
    costs = [[(order.lengths[order.step_samples(0, s, 3)] ** 2).sum() for s in range(2)] for order in (even, plain)]
    assert abs(costs[0][0] - costs[0][1]) < abs(costs[1][0] - costs[1][1])


def test_the_mix_is_announced_and_recorded(two, tmp_path, caplog):
    caplog.set_level("INFO", logger="whet")
    rows = ({**ROWS[0], "weight": 1.0}, {**ROWS[1], "weight": 1.0})
    resolved = make_resolved(tmp_path, datasets=rows, num_epochs=20.0)
    _, plan = plan_run(resolved, two)
    announce(resolved, two, plan)
    told = [line for line in caplog.messages if line.startswith("mix:")]
    assert told == [f"mix:  {share}" for share in plan.shares]
    assert "(50% asked)" in told[0]
    record = RunRecord(None)
    record.note("plan", plan)
    assert [share.asked for share in record.facts["plan"].shares] == [0.5, 0.5]


def test_a_phase_of_an_unknown_dataset_is_refused(two, tmp_path):
    phases = ({"share": 1.0, "weights": {"cod": 1.0}},)
    with pytest.raises(ConfigError, match=r"phases\[0\].weights: there is no dataset 'cod' -> did you mean 'code'"):
        training_order(make_resolved(tmp_path, datasets=ROWS, phases=phases), two.train)
