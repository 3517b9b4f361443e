"""The loss that a config asks for, who computes it, and what the run says about it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.models import tiny_model
from tests.tiny_training import make_resolved, make_trainer, random_samples, write_prepared

from whet.config import heads
from whet.config.rules import check_runnable
from whet.core.errors import ModelError
from whet.core.types import Hardware
from whet.model import head_packages
from whet.model.attention import NAME
from whet.model.loss_plan import install, plan_loss
from whet.model.loss_terms import LossPlan, LossTerms

GPU = Hardware("cuda", "a GPU", world_size=1, rank=0, local_rank=0, num_cpus=2, bf16=True)


def planned(tmp_path: Path, **keys: Any) -> tuple[LossPlan, str | None, dict[str, str]]:
    resolved, model = make_resolved(tmp_path, **keys), tiny_model(attention=NAME)
    plan = plan_loss(resolved.config, resolved, model)
    return plan, install(model, resolved.config, resolved), dict(resolved.choices)


def test_the_plain_loss_is_planned_and_said(tmp_path: Path) -> None:
    plan, said, _ = planned(tmp_path)
    assert plan == LossPlan()
    assert said == "loss: head and loss are computed together in chunks of up to 128 MiB of logits"


@pytest.mark.parametrize(
    ("keys", "terms"),
    [
        ({"label_smoothing": 0.1}, LossTerms(label_smoothing=0.1)),
        ({"z_loss_coefficient": 1e-4}, LossTerms(z_loss=1e-4)),
        ({"use_dft": True}, LossTerms(weighting="dft")),
        ({"use_eaft": True, "eaft_alpha": 2.0, "eaft_k": 5}, LossTerms(weighting="eaft", eaft_alpha=2.0, eaft_k=5)),
        (
            {"liger_fused_linear_cross_entropy": True, "liger_use_token_scaling": True},
            LossTerms(weighting="dft"),
        ),
    ],
)
def test_keys_become_terms(tmp_path: Path, keys: dict[str, Any], terms: LossTerms) -> None:
    assert planned(tmp_path, **keys)[0].terms == terms


def test_chunks_can_be_counted(tmp_path: Path) -> None:
    plan, said, _ = planned(tmp_path, chunked_cross_entropy=True, chunked_cross_entropy_num_chunks=8)
    assert plan.num_chunks == 8
    assert said == "loss: head and loss are computed together in 8 chunks"


@pytest.mark.parametrize("key", ["cut_cross_entropy", "liger_cross_entropy", "liger_fused_linear_cross_entropy"])
def test_a_cpu_serves_other_heads_by_its_own_and_says_so(tmp_path: Path, key: str) -> None:
    plan, _, choices = planned(tmp_path, **{key: True})
    assert plan.head == "whet"
    assert "runs on CUDA alone; numbers and memory are the same" in choices[key]
    assert check_runnable(make_resolved(tmp_path, **{key: True}).config, Hardware("cpu", "a CPU")) == []


def test_a_head_that_is_asked_for_by_name_has_to_be_installed_on_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_resolved(tmp_path, cut_cross_entropy=True, bf16=True).config
    monkeypatch.setattr(heads, "find_spec", lambda name: None)
    (problem,) = check_runnable(config, GPU)
    assert problem.found == "cut_cross_entropy is true, and the package cut-cross-entropy is not installed"
    assert problem.fix.startswith("pip install cut-cross-entropy")
    monkeypatch.setattr(heads, "find_spec", lambda name: name)
    assert check_runnable(config, GPU) == []
    (problem,) = check_runnable(make_resolved(tmp_path, cut_cross_entropy=True, bf16=False).config, GPU)
    assert problem.fix.startswith("write bf16: true")


def test_a_package_is_not_used_for_what_it_does_not_compute(tmp_path: Path) -> None:
    """On a GPU; the numbers are planned for one here."""
    keys = {"liger_fused_linear_cross_entropy": True, "z_loss_coefficient": 1e-4}
    resolved, model = replace(make_resolved(tmp_path, **keys), head="liger"), tiny_model(attention=NAME)
    assert plan_loss(resolved.config, resolved, model).head == "whet"
    said = install(model, resolved.config, resolved)
    assert said is not None
    assert said.endswith("; not liger's, because the loss is more than the cross-entropy")


def test_a_package_that_computes_another_loss_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = replace(make_resolved(tmp_path, liger_cross_entropy=True), head="liger")
    ours = head_packages.PACKAGE_HEADS["liger"]
    assert ours is head_packages.liger

    def close(*given: Any) -> Any:
        return head_packages._of_ours(*given) * 1.01

    monkeypatch.setitem(head_packages.PACKAGE_HEADS, "liger", close)
    with pytest.raises(ModelError, match=r"liger computes another loss here: its loss differs by 1\.0e-02"):
        install(tiny_model(attention=NAME), resolved.config, resolved)
    monkeypatch.setitem(head_packages.PACKAGE_HEADS, "liger", head_packages._of_ours)
    assert "found equal to whet's own" in str(install(tiny_model(attention=NAME), resolved.config, resolved))


def test_plugins_that_are_not_needed_are_named(tmp_path: Path) -> None:
    plugins = ("axolotl.integrations.liger.LigerPlugin", "axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin")
    choices = planned(tmp_path, plugins=plugins)[2]
    assert choices["plugins"].startswith("LigerPlugin: its keys are read without it; CutCrossEntropyPlugin: few")


def test_training_has_the_terms_and_evaluation_the_plain_loss(tmp_path: Path) -> None:
    """A learning rate of almost 0: the first logged loss is the smoothed one, that of the evaluation is not."""
    prepared = write_prepared(tmp_path / "set", random_samples(6), random_samples(6))
    still = {"learning_rate": 1e-30, "optimizer": "sgd", "micro_batch_size": 6, "logging_steps": 1, "sequence_len": 64}
    losses = []
    for smoothing in (0.0, 0.5):
        keys = {**still, "label_smoothing": smoothing, "save_strategy": "no", "max_steps": 1}
        trainer = make_trainer(prepared, make_resolved(tmp_path / str(smoothing), **keys))
        trainer.train()
        logged = next(entry["loss"] for entry in trainer.state.log_history if "loss" in entry)
        losses.append((logged, trainer.evaluate()["eval_loss"]))
    assert losses[0][0] == pytest.approx(losses[0][1], rel=1e-5)
    assert losses[1][0] != pytest.approx(losses[0][0], rel=1e-3)
    assert losses[1][1] == losses[0][1]
