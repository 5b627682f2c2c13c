"""The model for NxD Inference: what is compiled for a Trn2, and what feeds it.

`batch`, `buckets`, `inputs`, `state`, `cache`, `options` and `compiler` are plain torch and Python; the other modules
import neuronx_distributed and neuronx_distributed_inference, and are imported only where those are installed.
"""
