"""Ways to train in less memory, one a file; `docs/memory.md` says what each costs and saves."""
