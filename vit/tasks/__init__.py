"""What is optimised: Lightning modules, their optimizers, schedules and averaged weights."""
