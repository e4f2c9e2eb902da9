"""From predictions to numbers and plots: pure functions, without Lightning, data loading or models."""
