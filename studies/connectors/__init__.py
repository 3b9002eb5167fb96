"""The connector study with a real language model: its head, its 49,152 tokens, what it knows."""
