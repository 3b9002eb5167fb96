"""The model: config, encoder with connector, generation, losses, blank dropping."""
