"""`qwen36 bench`: what is measured on this machine, and what is modelled of a Trn2."""
