"""A model that finds one token among a million, made by hand, and the question put to it."""
