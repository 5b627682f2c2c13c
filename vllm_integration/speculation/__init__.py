"""Speculation as the engine's side sees it: what was asked for, which drafts a request gets, and what they earn."""
