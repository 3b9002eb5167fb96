"""Many files, resumable, on one machine or on Ray."""
