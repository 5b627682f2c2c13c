"""NxDI's own Python code on a CPU: stand-ins for Neuron's packages and for the container of compiled graphs."""
