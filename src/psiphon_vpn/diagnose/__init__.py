"""Diagnosis (R15): many small checks that only read, and a next step for each that fails."""
