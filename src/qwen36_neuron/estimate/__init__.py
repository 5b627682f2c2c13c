"""How fast a profile would run on a trn2.3xlarge, modelled: time to first token, time a token, and what binds each."""
