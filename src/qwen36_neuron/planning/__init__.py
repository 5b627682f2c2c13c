"""What a profile takes and gives on a trn2.3xlarge, modelled: memory, time to first token, time a token, what binds."""
