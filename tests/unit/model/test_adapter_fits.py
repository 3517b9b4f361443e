"""An adapter that does not belong to the model is refused, whatever PEFT would make of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tests.models import make_config, save_tiny_model, tiny_model

from whet.core.errors import ModelError
from whet.model.adapters import load_adapter
from whet.model.base_check import check_base
from whet.model.identity import identify, write_identity

WEIGHTS = "adapter_model.safetensors"
A = "base_model.model.model.layers.{}.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Of two layers' q_proj."""
    get_peft_model(tiny_model(), LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_a_key_without_a_module_is_refused_with_the_nearest_name(adapter: Path) -> None:
    save_file({**load_file(adapter / WEIGHTS), A.format(7): torch.zeros(2, 32)}, adapter / WEIGHTS)
    with pytest.raises(ValueError, match=r"holds .*layers\.7\..*no place; the nearest name is .*layers\.\d\.self_attn"):
        load_adapter(tiny_model(), adapter)


def test_a_saved_module_without_a_place_is_refused(adapter: Path) -> None:
    name = "base_model.model.model.nrom.weight"
    save_file({**load_file(adapter / WEIGHTS), name: torch.zeros(32)}, adapter / WEIGHTS)
    with pytest.raises(ValueError, match=r"holds .*nrom\.weight, .*the nearest name is base_model\.model\.model\.norm"):
        load_adapter(tiny_model(), adapter)


def test_a_module_of_the_config_that_the_file_lacks_is_refused(adapter: Path) -> None:
    settings = json.loads((adapter / "adapter_config.json").read_text())
    settings["target_modules"] = ["q_proj", "v_proj"]
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"lacks .*v_proj.* and 3 more, which its config asks for; the nearest name is"
    ):
        load_adapter(tiny_model(), adapter)


def test_a_header_that_does_not_fit_its_file_is_refused(adapter: Path) -> None:
    whole = (adapter / WEIGHTS).read_bytes()
    length = int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + length])
    header[A.format(1)] |= {"data_offsets": [1 << 59, 1 << 60], "shape": [2, 1 << 56]}
    text = json.dumps(header).encode()
    (adapter / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + whole[8 + length :])
    with pytest.raises(ValueError, match="its file is damaged: "):
        load_adapter(tiny_model(), adapter)


def test_an_embedding_of_another_length_is_refused(adapter: Path) -> None:
    larger = {**load_file(adapter / WEIGHTS), "base_model.model.model.embed_tokens.weight": torch.zeros(320, 32)}
    save_file(larger, adapter / WEIGHTS)
    with pytest.raises(ValueError, match="embedding has 320 rows and the model's 300: their vocabularies differ"):
        load_adapter(tiny_model(), adapter)


def test_another_base_is_refused_unless_allowed(
    adapter: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config(save_tiny_model(tmp_path / "one"), adapter={"adapter": "lora"})
    check_base(adapter, config)
    assert "does not say which base model it was trained on" in caplog.text
    identity = identify(config)
    assert identity is not None
    write_identity(adapter, identity)
    caplog.clear()
    check_base(adapter, config)
    same_bytes = make_config(save_tiny_model(tmp_path / "same"), adapter={"adapter": "lora"})
    check_base(adapter, same_bytes)
    assert caplog.text == ""
    other = save_tiny_model(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match=r"was trained on '.*one' .*base_model is '.*other' .*allow_other_base: true"):
        check_base(adapter, make_config(other, adapter={"adapter": "lora"}))
    check_base(adapter, make_config(other, adapter={"adapter": "lora", "allow_other_base": True}))
    assert "taken all the same (allow_other_base)" in caplog.text
