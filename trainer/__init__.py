"""Train, evaluate and export vision-language models."""
