"""Fuzzing of everything that whet reads from strangers, led by coverage: ``make fuzz``, or one target alone,

    python -m fuzzing adapter-config --runs 20000

A target is a function of bytes and the folder it may write in: it must return, or end with an error for the user. What
is given to it is mutated with its shape in mind (`fuzzing.mutations`), by atheris, which needs the extra ``fuzz``.
An input that broke something stays in ``fuzzing/findings/TARGET/``: `make test` gives it to its target again, with
every seed, and needs no atheris for that (tests/promises/test_safe_findings.py).
"""
