"""What is true of a file and of this machine: GGUF headers, hardware, the local catalog."""
