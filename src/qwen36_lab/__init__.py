"""The laboratory: what measures, trains and teaches. It imports what serves; nothing that serves imports it."""
