"""How shipped models are made."""
