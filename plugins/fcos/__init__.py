"""ATSS."""
