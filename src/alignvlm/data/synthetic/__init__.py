"""Pages that are drawn: layouts, text, fonts, degradations."""
