"""From a trace to maps: what a model attended to, which patches spoke for a class."""
