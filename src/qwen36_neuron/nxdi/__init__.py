"""The model for NxD Inference: what is compiled for a Trn2, and what feeds it.

Every module here imports neuronx_distributed or neuronx_distributed_inference, and is imported only where those are
installed. What describes the graphs without them is in `graph`.
"""
