"""From a trace to maps: what a model attended to, which patches spoke for a class. This file imports no torch."""

FOR_A_CLASS = ("gradient-rollout", "generic", "legrad", "grad-cam", "integrated-gradients")
"""methods whose map is of one class, by gradients of its score"""
METHODS = ("raw", "rollout", *FOR_A_CLASS, "norm")
FUSIONS = ("mean", "max", "min")
"""how rollout makes one of all heads"""
