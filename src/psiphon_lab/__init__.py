"""The laboratory: network namespaces, stand-ins, captures and verdicts. Touches only namespaces it made."""
