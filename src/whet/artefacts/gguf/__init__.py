"""GGUF: one file of weights, tokenizer and chat template, as llama.cpp, Ollama and their kin read it.

    config.json ──> architectures.py (what its numbers are called) ──┐
    safetensors ──> tensors.py (what becomes of each tensor)      ──┼──> writing.py ──> model.gguf ──> proof
    tokenizer   ──> vocabulary.py (pieces, scores, merges)        ──┘

Names and numbers of the format are those of the ``gguf`` package; what each architecture needs beside them was read in
llama.cpp (b-numbers of November 2026) and is proved by its own program in tests.
"""
