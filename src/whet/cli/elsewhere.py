"""Commands and options that a newcomer brings along, from Axolotl or by habit, each with what whet has instead."""

from __future__ import annotations

COMMANDS: dict[str, str] = {
    "help": "write 'whet --help', or 'whet train --help'",
    "version": "write 'whet --version'",
    "config-schema": "write 'whet config schema'",
    "explain": "write 'whet config explain my.yaml'",
    "schema": "write 'whet config schema'",
    "export": "write 'whet merge-lora my.yaml' for transformers, 'whet export-gguf my.yaml' for llama.cpp and Ollama",
    "webui": "there is no web page to train from: write 'whet train my.yaml', and 'whet chat my.yaml' to talk to it",
    "fetch": "the examples lie in the folder examples of the repository",
    "vllm-serve": "serve what 'whet merge-lora my.yaml' writes with vLLM's own command",
    "lm-eval": "give what 'whet merge-lora my.yaml' writes to lm_eval; 'whet evaluate my.yaml' has losses",
    "resume": "write 'whet train my.yaml --resume-from-checkpoint'",
    "dpo": "write rl: dpo into the YAML, then 'whet train my.yaml'",
    "sft": "write 'whet train my.yaml'",
}
"""Names of commands that are none."""

OPTIONS: dict[str, str] = {
    "--sweep": "start one run for each value: whet train my.yaml --learning-rate 1e-4 --output-dir outputs/a",
    "--cloud": "start whet on that machine",
    "--gradio": "leave it out: 'whet chat my.yaml' talks in the terminal",
    "--chat": "leave it out: in a terminal it is a conversation",
    "--prompter": "leave it out: the prompt is rendered as in training",
    "--dequant": "leave it out: a base in few bits is merged as full weights",
    "--iterable": "write streaming: true into the YAML",
    "--weight-dtype": "write --quantization.weight_dtype int8",
    "--activation-dtype": "write --quantization.activation_dtype int8",
    "--group-size": "write --quantization.group_size 32",
    "--main-process-port": "hand it to torchrun: --launcher torchrun -- --master-port 29500",
    "--dry-run": "write 'whet check my.yaml'",
    "--config": "the YAML file is the first argument, without an option: my.yaml",
    "--verbose": "leave it out: run.json in output_dir has what the libraries said, too",
}
"""Options that no command has."""
