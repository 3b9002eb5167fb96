"""Published data sets: what is known of them, where a copy lies, how it is opened."""
