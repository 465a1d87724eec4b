"""What a network means: NIR graphs with signed spikes and gates, one step per node kind, traces and their proof."""

__version__ = "0.1.0"
