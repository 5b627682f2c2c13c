"""Probes of a device: a tiny kernel for each question that documents and other people's reports leave open.

`table` lists them, `modelled` prices their timings in the interpreter, `results` reads and writes what was found, and
`calibrate` turns measured timings into a price list. `scripts/validate_trn2.py --probes` runs them.
"""
