"""Reproductions: one declarative file per paper, one engine for all."""
