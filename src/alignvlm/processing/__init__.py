"""Pages and prompts to tensors: image processor, processor, chat templates."""
