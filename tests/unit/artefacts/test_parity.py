"""A parity record tells a model that is the live one from one that is not, and says what was compared."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from tests.models import save_tiny_model, tiny_model, tiny_tokenizer
from tests.tiny_training import make_resolved
from transformers import AutoModelForCausalLM

from whet.artefacts import prove_saved
from whet.artefacts.fresh import CannotLoad, FreshProcess, Source
from whet.artefacts.fresh_script import divergence
from whet.artefacts.parity import FLOAT32, HALF, RECORD_NAME, Parity, limit_for, live_reference, prove, workspace
from whet.artefacts.prompts import encode_prompts
from whet.artefacts.publish import published
from whet.core.errors import ParityError


@pytest.fixture(scope="module")
def fresh() -> Iterator[FreshProcess]:
    with FreshProcess() as process:
        yield process


def proved(fresh: FreshProcess, folder: Path, source: Source | None = None, limit: object = FLOAT32) -> Parity:
    with workspace(folder.parent) as space:
        reference = live_reference(tiny_model(), encode_prompts(tiny_tokenizer()), space, what="a tiny Llama")
        return prove(fresh, "model", folder, source or Source(folder=str(folder)), reference, limit)


def test_what_was_written_exactly_has_no_divergence(fresh: FreshProcess, tmp_path: Path) -> None:
    parity = proved(fresh, save_tiny_model(tmp_path / "model"))
    assert parity.max_kl == pytest.approx(0, abs=1e-9)
    assert parity.same_first_choice == 1
    record = json.loads((tmp_path / "model" / RECORD_NAME).read_text())
    assert record["outcome"] == "within the limit"
    assert record["kl"]["positions"] == parity.positions == sum(record["prompts"]["tokens"])
    assert record["artefact"]["files"]["model.safetensors"]["sha256"]
    assert record["live"] == {"dtype": "float32", "device": "cpu", "what": "a tiny Llama"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "the logits are left"


def test_one_changed_weight_is_found_and_the_folder_named_for_it(fresh: FreshProcess, tmp_path: Path) -> None:
    other = tiny_model()
    other.model.layers[0].self_attn.q_proj.weight.data[0, 0] += 1.0

    def publish() -> None:
        with published(tmp_path / "merged", "merged model") as partial:
            other.save_pretrained(partial)
            proved(fresh, partial)

    with pytest.raises(ParityError, match=r"is not the model that was trained: KL .*it is kept as '.*FAILED-PARITY'"):
        publish()
    assert [path.name for path in tmp_path.iterdir()] == ["merged.FAILED-PARITY"]
    record = json.loads((tmp_path / "merged.FAILED-PARITY" / RECORD_NAME).read_text())
    assert record["outcome"] == "over the limit"
    AutoModelForCausalLM.from_pretrained(tmp_path / "merged.FAILED-PARITY")


def test_what_cannot_be_loaded_is_no_artefact(fresh: FreshProcess, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(ParityError, match="a fresh process cannot load it: "):
        proved(fresh, folder)


def test_a_process_that_was_killed_proves_nothing_and_refuses_nothing(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model")
    with FreshProcess() as process:
        process._process.kill()
        parity = proved(process, folder)
    assert parity.outcome.startswith("not proved: the process that should load it has ended")
    assert parity.mean_kl is None


def test_a_process_that_cannot_be_started_proves_nothing_and_refuses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny_model(tmp_path / "model")
    monkeypatch.setattr("whet.artefacts.fresh.sys.executable", str(tmp_path / "no-python"))
    with FreshProcess() as process:
        parity = proved(process, folder)
    assert parity.outcome == (
        "not proved: the process that should load it cannot be started (No such file or directory)"
    )
    assert json.loads((folder / RECORD_NAME).read_text())["outcome"] == parity.outcome


def test_a_saved_model_is_kept_where_its_proof_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is not told as one that could not be saved; only what is known to be another model is set apart."""
    folder = save_tiny_model(tmp_path / "model")
    names = sorted(path.name for path in folder.iterdir())
    (folder / RECORD_NAME).write_text("of an earlier result")
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    disk = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    def refuse(error: Exception) -> Any:
        def write(*_: Any, **__: Any) -> None:
            raise error

        return write

    with FreshProcess() as fresh:

        def save() -> Parity | None:
            resolved = make_resolved(folder, base_model=str(folder))
            return prove_saved.prove_saved(fresh, resolved, tiny_model(), tiny_tokenizer(), folder, names)

        for error in (full, disk):
            monkeypatch.setattr("whet.artefacts.parity.save_file", refuse(error))
            found = save()
            assert found is not None
            assert found.outcome == "not proved: No space left on device"
            assert json.loads((folder / RECORD_NAME).read_text())["outcome"] == found.outcome
        monkeypatch.setattr("whet.artefacts.parity.versions_of", refuse(full))
        assert save() == found
        assert not (folder / RECORD_NAME).exists()
        monkeypatch.setattr("whet.artefacts.parity.save_file", save_file)
        monkeypatch.setattr(FreshProcess, "compare", refuse(CannotLoad("it is none")))
        with pytest.raises(ParityError, match=r"cannot load it: it is none; it is kept as '.*/model.FAILED-PARITY'"):
            save()


def test_without_a_limit_it_is_reported(fresh: FreshProcess, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", seed=1)
    parity = proved(fresh, folder, limit=None)
    assert parity.outcome == "reported"
    assert parity.mean_kl is not None
    assert parity.mean_kl > 0.1


def test_the_divergence_is_that_of_torch() -> None:
    expected, found = torch.randn(2, 5, 30, generator=torch.Generator().manual_seed(0)) * 3
    kl, agreeing = divergence(expected, found)
    by_torch = torch.nn.functional.kl_div(
        found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    torch.testing.assert_close(torch.tensor(kl), by_torch)
    assert agreeing == int((expected.argmax(-1) == found.argmax(-1)).sum())
    assert divergence(expected, found * torch.nan)[0] == [float("inf")] * 5


def test_the_coarsest_type_decides_the_limit() -> None:
    assert limit_for("float32", "float32") == FLOAT32
    assert limit_for("float32", "bfloat16") == limit_for("float16") == HALF
    assert limit_for("bfloat16", "nf4") is None


def test_prompts_go_through_the_template_and_as_text_where_it_refuses_them() -> None:
    tokenizer = tiny_tokenizer()
    templated = encode_prompts(tokenizer)
    assert templated.form == "chat template"
    assert tokenizer.decode(templated.ids[0]).startswith("<|bos|><|im_start|>user\nWhat is the capital of Italy?")
    assert len(templated.ids) == 8
    assert max(map(len, templated.ids)) <= 128
    for template in (None, "{{ raise_exception('no') }}"):
        tokenizer.chat_template = template
        plain = encode_prompts(tokenizer, most_tokens=20)
        assert plain.form == "plain text"
        assert {len(ids) for ids in plain.ids} == {20}
