"""Files as users have them load as they are; only what is not at hand is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from whet.config import check_runnable, load_config, resolve
from whet.core.errors import ConfigError
from whet.core.types import Hardware

CONFIGS = Path(__file__).parents[2] / "data" / "configs"
GPU = Hardware("cuda", "H100", bf16=True)
BASE = "base_model: org/model\nlearning_rate: 2e-4\n"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_qlora_file_loads_and_means_what_it_says() -> None:
    config = load_config(CONFIGS / "llama3-8b-qlora.yaml", environ={})
    resolved = resolve(config, GPU)
    assert (resolved.quantization, config.quant.bnb_4bit_use_double_quant) == ("nf4", True)
    assert config.adapter.merge_adapters
    assert (resolved.dtype, resolved.attn_implementation) == ("bfloat16", "flash_attention_2")
    assert resolved.report_to == ("wandb",)
    assert config.template.default_system_message == "You are a helpful, accurate, and honest assistant."
    assert [warning.key for warning in config.warnings] == ["flash_attention", "eval_table_size"]
    assert check_runnable(config, GPU) == []


def test_of_every_kind_of_dataset_only_absent_files_are_reported(work: Path) -> None:
    text = BASE + (CONFIGS / "datasets-variants.yaml").read_text()
    (work / "my.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_config("my.yaml", environ={})
    assert [problem.found for problem in error.value.problems] == [
        f"datasets[{index}].path: there is no 'data/{name}.jsonl'"
        for index, name in ((3, "custom"), (4, "mapped"), (5, "segments"))
    ]
    (work / "data").mkdir()
    for name in ("custom", "mapped", "segments"):
        (work / "data" / f"{name}.jsonl").write_text("{}\n")
    config = load_config("my.yaml", environ={})
    assert [row.type for row in config.data.datasets] == [
        "sharegpt",
        "alpaca",
        "completion",
        "chat_template",
        "chat_template",
        "input_output",
        "alpaca_chat.load_no_prompt",
    ]
    assert config.warnings == ()


def test_the_fsdp_fragment_is_understood_and_does_not_run_yet(work: Path) -> None:
    text = BASE + "datasets: [{path: org/d, type: alpaca}]\n" + (CONFIGS / "fsdp.yaml").read_text()
    (work / "my.yaml").write_text(text)
    config = load_config("my.yaml", environ={})
    options = config.distributed.fsdp_config
    assert options is not None
    assert (options.transformer_layer_cls_to_wrap, options.forward_prefetch) == ("LlamaDecoderLayer", True)
    assert config.warnings == ()
    (problem,) = check_runnable(config, GPU)
    assert problem.found == "fsdp is understood, and does not run in this version"


def test_the_deepspeed_file_is_read_and_does_not_run_yet(work: Path) -> None:
    text = BASE + f"datasets: [{{path: org/d, type: alpaca}}]\ndeepspeed: {CONFIGS / 'deepspeed_zero3.json'}\n"
    (work / "my.yaml").write_text(text)
    (problem,) = check_runnable(load_config("my.yaml", environ={}), GPU)
    assert str(problem) == (
        "my.yaml:4:1: deepspeed is understood, and does not run in this version -> "
        "remove it: several processes train with DDP (--launcher torchrun)"
    )
