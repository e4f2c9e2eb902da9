"""What is built from `vit.nn`, the table of sizes, and the model file."""
