"""Diagnosis (R15): many small checks that only read, and what to do about each that fails."""
