"""Computations in two forms: a plain one that defines the result, and a fast one that is proved equal to it."""
