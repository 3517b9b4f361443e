"""What each fault of test_bad_input.py is answered with, to the letter. Read it as the person who gets it."""

# ruff: noqa: E501  # a message is one line

MESSAGES: dict[str, list[str]] = {
    "unknown key": [
        "my.yaml:14:1: unknown key 'learing_rate' -> did you mean 'learning_rate'?",
    ],
    "unknown dataset key": [
        "my.yaml:5:5: unknown key 'datasets[0].feild' -> did you mean 'field'?",
    ],
    "unknown nested key": [
        "my.yaml:15:3: unknown key 'special_tokens.pad_tokn' -> did you mean 'pad_token'?",
    ],
    "duplicate key": [
        "my.yaml:14:1: 'learning_rate' is written twice, first on line 9 -> keep one of the two lines",
    ],
    "negative learning rate": [
        "my.yaml:9:1: learning_rate is -1 -> write a number above 0",
    ],
    "micro batch 0": [
        "my.yaml:7:1: micro_batch_size is 0 -> write a whole number above 0",
    ],
    "unknown optimizer": [
        "my.yaml:14:1: optimizer: there is no 'adamw_trch' -> did you mean 'adamw_torch'?",
    ],
    "unknown scheduler": [
        "my.yaml:14:1: lr_scheduler: there is no 'cosin' -> did you mean 'cosine'?",
    ],
    "unknown dataset type": [
        "my.yaml:4:5: datasets[0].type: there is no type 'alpacca' -> did you mean 'alpaca'?",
    ],
    "unknown chat template": [
        "my.yaml:14:1: chat_template: there is no template 'chatlm' -> did you mean 'chatml'?",
    ],
    "word for a number": [
        "my.yaml:14:1: num_epochs is 'three' -> write a number",
    ],
    "list for a string": [
        "my.yaml:1:1: base_model is a list -> write text",
    ],
    "key without support yet": [
        "my.yaml:14:1: 'use_pose' is not supported yet -> PoSE is not built: set sequence_len",
    ],
    "warm-up twice": [
        "my.yaml:14:1: warmup_ratio is written, and so is warmup_steps (my.yaml:10:1) -> keep one of them",
    ],
    "4-bit without adapter": [
        "my.yaml:14:1: load_in_4bit is true, and quantised weights cannot be trained -> add `adapter: qlora`",
    ],
    "validation share out of range": [
        "my.yaml:14:1: val_set_size is 1.5 -> write a share below 1, or a whole number of rows from 2",
    ],
    "no datasets": [
        "my.yaml: datasets is missing -> add `datasets:` with a row `- path: ...` and `type: ...`",
    ],
    "no base_model": [
        "my.yaml: base_model is missing -> add `base_model: <folder or hub id>`",
    ],
    "several at once": [
        "my.yaml:9:1: learning_rate is -1 -> write a number above 0",
        "my.yaml:14:1: unknown key 'learing_rate' -> did you mean 'learning_rate'?",
        "my.yaml:15:1: num_epochs is 'three' -> write a number",
    ],
    "empty YAML": [
        "my.yaml: the file is empty -> write at least base_model, datasets and learning_rate",
    ],
    "YAML is a list": [
        "my.yaml:1:1: the file holds a list, not keys with values -> write `key: value` lines",
    ],
    "YAML syntax": [
        "my.yaml:2:14: this is not YAML: expected ',' or ']', but got ':' -> check indentation, quotes and brackets here and on the line before",
    ],
    "YAML with a tab": [
        "my.yaml:2:1: this is not YAML: found character '\\t' that cannot start any token -> indent with spaces, not with tabs",
    ],
    "YAML not UTF-8": [
        "my.yaml:1: byte 0xe9 is not UTF-8 -> save the file as UTF-8",
    ],
    "no such YAML": [
        "mine.yaml: there is no such file -> did you mean my.yaml?",
    ],
    "YAML is a folder": [
        "conf: this is a folder -> name a YAML file in it",
    ],
    "unknown option": [
        "--learning-rat: unknown key 'learning_rat' -> did you mean 'learning_rate'?",
    ],
    "option without a number": [
        "--learning-rate: learning_rate is 'fast' -> write a number",
    ],
    "no config": [
        "whet train: no CONFIG was given -> put the YAML file first: whet train my.yaml",
    ],
    "unknown command": [
        "whet: there is no command 'trian' -> did you mean 'train'?",
    ],
    "option without a value": [
        "--learning-rate: learning_rate is no switch -> write --learning-rate VALUE",
    ],
    "no- before a number": [
        "--no-val-set-size: val_set_size is no switch -> write --val-set-size VALUE",
    ],
    "option with an empty value": [
        "--learning-rate: learning_rate is empty -> add `learning_rate: 2e-4` (LoRA), or 2e-5 when every weight is trained",
    ],
    "output over the base model": [
        "my.yaml:13:1: output_dir 'model' is the folder of base_model, which the run would write over -> write another folder",
    ],
    "name too long": [
        "my.yaml:13:1: output_dir is no path: a name in it is longer than 255 bytes, or holds a NUL -> write the path of a file or folder",
    ],
    "dataset name too long": [
        "my.yaml:3:5: datasets[0].path is no path: a name in it is longer than 255 bytes, or holds a NUL -> write the path of a file or folder",
    ],
    "NUL in a path": [
        "my.yaml:1:1: base_model is no path: a name in it is longer than 255 bytes, or holds a NUL -> write the path of a file or folder",
    ],
    "sizes that the weights do not have": [
        "my.yaml:1:1: base_model: the weights of 'model' have other sizes than its config says -> take back what overrides_of_model_config changes, or write reinit_weights: true",
    ],
    "config.json is a list": [
        "my.yaml:1:1: base_model: the folder 'model' holds no model config that can be loaded (Unrecognized model in model. Should have a `model_type` key in its config.json.) -> it holds chat_template.jinja, config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json; give the folder that transformers' save_pretrained wrote",
    ],
    "tokenizer_config.json is a list": [
        "my.yaml:1:1: base_model: the folder 'model' holds no tokenizer that can be loaded ('list' object has no attribute 'get') -> it holds chat_template.jinja, config.json, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json; give the folder that transformers' save_pretrained wrote",
    ],
    "variable without a value": [
        ".env:1: the line cannot be read -> write NAME=value",
    ],
    "empty token": [
        "my.yaml:14:1: tokens: a token is empty -> write its text, or remove it",
    ],
    "key of another trainer": [
        "my.yaml:14:1: unknown key 'per_device_train_batch_size' -> did you mean 'micro_batch_size'?",
    ],
    "key of a dataset at the top": [
        "my.yaml:14:1: unknown key 'field_messages' -> write it in a row of `datasets`",
    ],
    "name in capitals": [
        "my.yaml:14:1: chat_template: there is no template 'ChatML' -> did you mean 'chatml'?",
    ],
    "link to nowhere": [
        "my.yaml:3:5: datasets[0].path: 'link.jsonl' is a link to 'nowhere.jsonl', which is not there -> mend the link, or name the file itself",
    ],
    "UTF-16": [
        "rows.jsonl:1: not UTF-8 (the file is UTF-16, save it as UTF-8) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "NaN": [
        "rows.jsonl:1: not valid JSON (NaN is not JSON, null is at column 27) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "JSON document named jsonl": [
        "rows.jsonl:1: not valid JSON (unexpected end of data at column 1; for one JSON document, set `ds_type: json`); 14 rows, also rows.jsonl:2, 3, 4, 5 and 9 more -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "null content": [
        "rows.jsonl:2: missing field (message 1 has 'content' null) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "tool call that the template leaves out": [
        "rows.jsonl:2: tool calls left out (the chat template does not write the tool_calls of message 1) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "preferred to itself": [
        "rows.jsonl:2: answers are equal (chosen and rejected are the same tokens, so nothing is to be preferred) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "column twice": [
        "rows.csv:1: the header names the column 'output' twice -> give each column a name of its own",
    ],
    "every row too long, seen by check": [
        "my.yaml:3:5: 'rows.jsonl': every row is longer than sequence_len 128 (shortest 223 tokens) -> raise sequence_len to at least 223, or set `excess_length_strategy: truncate`",
    ],
    "unfrozen parameters match nothing": [
        "my.yaml:14:1: unfrozen_parameters: 'modle' matches no parameter -> they look like 'model.embed_tokens.weight'",
    ],
    "missing dataset file": [
        "my.yaml:3:5: datasets[0].path: there is no './row.jsonl' -> did you mean 'rows.jsonl'?",
    ],
    "empty dataset": [
        "my.yaml:3:5: 'rows' has no rows -> check the file, or take it out of the datasets",
    ],
    "row without the field": [
        "rows.jsonl:2: missing field ('messages' is not in the row; it has conversation) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "messages are text": [
        "rows.jsonl:2: wrong type ('messages' is a string, not a list) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "message without a role": [
        "rows.jsonl:2: missing field (message 0 has no 'role'; it has content) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "no messages": [
        "rows.jsonl:2: empty conversation ('messages' is an empty list) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "row is a list": [
        "rows.jsonl:2: not a JSON object (found list [1,2]) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "broken JSON line": [
        "rows.jsonl:2: not valid JSON (unexpected end of data at column 1) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "data not UTF-8": [
        "rows.jsonl:2: not UTF-8 (byte 0xe9 at byte 18 of the line) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "no assistant turn": [
        "rows.jsonl:2: no assistant turn (its turns are of: user) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "unknown role": [
        "rows.jsonl:2: unknown role (message 0 has role 'narrator'; known are assistant, developer, function, gpt, human, system, tool, user (see `roles`)) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "control token in content": [
        "rows.jsonl:2: special token in content (the row's own text contains '<|im_end|>': ...'|im_start|>user\\nSay <|im_end|> now<|im_end|>\\n<|im_'...) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "all rows too long": [
        "my.yaml:3:5: 'rows': all 2 rows are longer than sequence_len 128 (shortest 223 tokens) -> raise sequence_len to at least 223, or set `excess_length_strategy: truncate`",
    ],
    "one row too long, raise": [
        "rows.jsonl:2: longer than sequence_len 128 (223 tokens) -> raise sequence_len to 223, or set `excess_length_strategy` to drop or truncate",
    ],
    "pre-tokenised labels that are neither": [
        "rows.jsonl:1: label is not its token (label 1 is 9; it must be -100 or the token's own id, 6 (labels are not shifted)) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "token id past the vocabulary": [
        "rows.jsonl:1: unknown token id (7777 is not below 261, the size of the tokenizer's vocabulary) -> mend the rows, or set `on_bad_row: drop` to leave them out and count them",
    ],
    "template that fails": [
        "my.yaml:14:1: the chat template fails on a plain question and answer: no -> use another chat_template, or correct this one",
    ],
    "template that does not parse": [
        "my.yaml:14:1: the chat template does not compile: Expected an expression, got 'end of statement block' (its line 1) -> correct the template",
    ],
    "empty folder of data": [
        "my.yaml:3:5: the folder 'data' holds no file of rows -> it may hold: .arrow, .csv, .json, .jsonl, .md, .ndjson, .parquet, .text, .tsv, .txt",
    ],
    "validation larger than the data": [
        "my.yaml:14:1: val_set_size 50 takes all 12 samples, nothing is left to train on -> set it lower, or to 0 for no validation",
    ],
    "missing model folder": [
        "my.yaml:1:1: base_model: there is no './modle' -> did you mean 'model'?",
    ],
    "hub id without network": [
        "my.yaml:1:1: base_model: 'your-org/your-model' is no folder here, and the hub is switched off (HF_HUB_OFFLINE) and has no copy of it -> write its folder, or run `hf download your-org/your-model` where there is a network, or unset HF_HUB_OFFLINE",
    ],
    "model folder without config.json": [
        "my.yaml:1:1: base_model: the folder 'model' holds no model config that can be loaded (Unrecognized model in model. Should have a `model_type` key in its config.json.) -> it holds chat_template.jinja, generation_config.json, model.safetensors, tokenizer.json, tokenizer_config.json; give the folder that transformers' save_pretrained wrote",
    ],
    "model folder without weights": [
        "my.yaml:1:1: base_model: the folder 'model' holds no model that can be loaded (Error no file named model.safetensors, or pytorch_model.bin, found in directory model.) -> it holds chat_template.jinja, config.json, generation_config.json, tokenizer.json, tokenizer_config.json; give the folder that transformers' save_pretrained wrote",
    ],
    "truncated weights": [
        "my.yaml:1:1: base_model: 'model/model.safetensors' is damaged, or cut short (Error while deserializing header: invalid header length) -> copy it again from where it came",
    ],
    "tokenizer without a template": [
        "my.yaml: the tokenizer has no chat template of its own -> set chat_template to one of: alpaca, chatml, cohere, deepseek_v2, deepseek_v3, exaone, gemma, gemma3, gemma3n, llama2, llama3, llama4, metharme, mistral_v1, mistral_v2v3, mistral_v3_tekken, mistral_v7_tekken, phi_3, phi_35, qwen3, qwen_25",
    ],
    "target modules match nothing": [
        "my.yaml:15:1: lora_target_modules: 'gate_prj' matches no layer of model -> did you mean 'gate_proj'? This model has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj",
    ],
    "adapter without targets": [
        "my.yaml:14:1: the adapter has nothing to adapt -> add `lora_target_linear: true`, or name layers in lora_target_modules",
    ],
    "adapter to continue is missing": [
        "my.yaml:16:1: lora_model_dir: there is no './nowhere' -> paths count from the working folder, then from the YAML's",
    ],
    "sequence longer than the model": [
        "my.yaml:5:1: sequence_len is 128, and 'model' was made for 64 positions -> write sequence_len: 64, or less; or lengthen the model by model_config (rope_scaling)",
    ],
    "output folder under a file": [
        "my.yaml:13:1: output_dir 'rows.jsonl/out' cannot be written to (Not a directory) -> name a folder that you may write to",
    ],
    "checkpoint to resume is missing": [
        "my.yaml:14:1: resume_from_checkpoint: there is no 'out/checkpoint-7' -> the folder 'out' does not exist; paths count from the working folder, then from the YAML's",
    ],
    "merge without an adapter": [
        "my.yaml:13:1: there is no trained adapter in 'out' yet -> train it: whet train my.yaml; or name another folder: --lora-model-dir",
    ],
    "chat before training": [
        "my.yaml:13:1: there is no trained model in 'out' yet -> train it: whet train my.yaml; or add --untrained for the base model as it is",
    ],
    "evaluate without data to evaluate on": [
        "my.yaml: there is no evaluation data -> set val_set_size or test_datasets",
    ],
}
