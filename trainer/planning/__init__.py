"""What a recipe will take on a number of GPUs: memory, time, disk; without any of them."""
