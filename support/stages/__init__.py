"""Stages: one module an arrow, each makes one artifact from another."""
