"""The recurrent half of the hybrid cache in vLLM's scheduler: its spec, its pool of checkpoint slots, its manager."""
