"""Distil pre-trained recommendation models into any RecBole model."""

from recbole_prmkd import compat  # noqa: F401
