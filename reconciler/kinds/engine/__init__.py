"""kind `engine`: a program that runs models."""
