"""Guests: machines of the laboratory with a kernel of their own, under QEMU."""
