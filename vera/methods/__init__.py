"""What is trained, one module a method."""
