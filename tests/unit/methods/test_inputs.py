"""The order of training is the one the config asks for."""

from __future__ import annotations

from tests.tiny_training import make_resolved, random_samples, write_prepared

from whet.methods.inputs import training_order


def test_shuffle_merged_datasets_false_keeps_the_order_of_the_data(tmp_path):
    prepared = write_prepared(tmp_path / "set", random_samples(20))
    kept = training_order(make_resolved(tmp_path, shuffle_merged_datasets=False), prepared.train)
    assert kept.epoch(1).members.tolist() == list(range(20))
    shuffled = training_order(make_resolved(tmp_path), prepared.train)
    assert shuffled.epoch(1).members.tolist() != list(range(20))
