"""Train excitatory-inhibitory spiking networks."""
