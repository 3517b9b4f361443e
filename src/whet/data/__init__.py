"""Rows in, token ids and labels out; each step a pure function on plain values."""
