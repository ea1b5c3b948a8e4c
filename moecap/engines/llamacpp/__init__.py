"""What runs in the environment that has llama.cpp as a wheel."""
