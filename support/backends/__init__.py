"""Runtimes behind one contract: fixed input, ten named heads, one sample of time per call."""
